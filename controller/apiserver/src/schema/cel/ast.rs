//! The syntax tree of an expression.

use std::sync::Arc;

/// An expression and the place where it begins, in characters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expr {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Literal(Literal),
    Name(String),
    /// `of.field`; with `optional` it is `of.?field`.
    Select {
        of: Box<Expr>,
        field: String,
        optional: bool,
    },
    /// `has(of.field)`
    Has {
        of: Box<Expr>,
        field: String,
    },
    /// `of[index]`; with `optional` it is `of[?index]`.
    Index {
        of: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    /// A function, method or operator. Operators go by CEL's names, like `_+_`.
    Call {
        function: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Each item, and whether it is optional.
    List(Vec<(Expr, bool)>),
    /// Each key and value, and whether the entry is optional.
    Map(Vec<(Expr, Expr, bool)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If(Box<[Expr; 3]>),
    /// A loop over `range` that binds `names` in `body`.
    Macro {
        which: Macro,
        range: Box<Expr>,
        names: Vec<String>,
        body: Vec<Expr>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// The name of a type, like `int` in `type(x) == int`.
    Type(&'static str),
}

/// The macros; with two names those of the two-variable library.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
    TransformList,
    TransformMap,
    TransformMapEntry,
    SortBy,
    OptMap,
    OptFlatMap,
}

impl Macro {
    /// The macro that a method call with so many arguments is.
    pub(super) fn of(function: &str, arguments: usize) -> Option<(Macro, usize)> {
        Some(match (function, arguments) {
            ("all", 2) => (Macro::All, 1),
            ("all", 3) => (Macro::All, 2),
            ("exists", 2) => (Macro::Exists, 1),
            ("exists", 3) => (Macro::Exists, 2),
            ("exists_one", 2) => (Macro::ExistsOne, 1),
            ("existsOne", 3) => (Macro::ExistsOne, 2),
            ("filter", 2) => (Macro::Filter, 1),
            ("map", 2 | 3) => (Macro::Map, 1),
            ("transformList", 3 | 4) => (Macro::TransformList, 2),
            ("transformMap", 3 | 4) => (Macro::TransformMap, 2),
            ("transformMapEntry", 3 | 4) => (Macro::TransformMapEntry, 2),
            ("sortBy", 2) => (Macro::SortBy, 1),
            ("optMap", 2) => (Macro::OptMap, 1),
            ("optFlatMap", 2) => (Macro::OptFlatMap, 1),
            _ => return None,
        })
    }
}

/// Something wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub at: usize,
    pub message: String,
}

impl Problem {
    pub(super) fn new(at: usize, message: impl Into<String>) -> Problem {
        Problem {
            at,
            message: message.into(),
        }
    }

    /// The problem with the line that it is on, as cel-go prints it.
    pub(super) fn show(&self, source: &str) -> String {
        let before: String = source.chars().take(self.at).collect();
        let line = before.matches('\n').count();
        let column = before.chars().rev().take_while(|c| *c != '\n').count();
        let text = source.split('\n').nth(line).unwrap_or_default();
        format!(
            "ERROR: <input>:{}:{}: {}\n | {text}\n | {}^",
            line + 1,
            column + 1,
            self.message,
            ".".repeat(column)
        )
    }
}
