//! `x-kubernetes-validations`: CEL, the Common Expression Language, as custom resources use it.
//!
//! ```text
//! check_sources(&root, path, &mut errors);                     // what can be seen without compiling
//! let rules = Rules::compile(&root, path, &mut errors);        // when a definition is applied
//! rules.run(&root, &object, old.as_ref(), &mut errors);        // at every write
//! ```
//! An interpreter of our own: `kube-cel` 0.8 on `cel` 0.13 was tried first. It does not know types before it
//! runs, so that a misspelt field or an unknown function would show only at the first object; it has neither
//! `type()` nor a bound on time; it counts bytes where CEL counts characters, and lets an error hide the item
//! that decides `exists`. Here rules are parsed ([`parser`]), checked against the schema's types ([`check`],
//! [`signatures`]) and evaluated straight on the JSON object ([`eval`]) under a budget.
//!
//! Not done, unlike the real server: costs are not estimated when a definition is applied. A rule that is too
//! expensive is accepted and fails when it runs out of budget.

mod ast;
mod check;
mod eval;
mod functions;
mod lexer;
mod parser;
mod rules;
mod run;
mod signatures;
#[cfg(test)]
mod tests;
mod types;
mod value;

pub(super) use rules::{Rules, check_sources};
