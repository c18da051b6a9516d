//! The type checker: what it accepts cannot fail for want of a function or field, except through `dyn`.

use super::ast::{Expr, Kind, Literal, Macro, Problem};
use super::signatures::{FUNCTIONS, Signature, TYPE_NAMES};
use super::types::{BOOL, INT, STRING, Type};

/// Checks an expression and resolves its names in place.
pub(super) struct Checker<'n> {
    scope: Vec<(String, Type<'n>)>,
    /// What is wrong with the expression.
    pub problems: Vec<Problem>,
    /// Whether it names `oldSelf`.
    pub uses_old: bool,
    /// Inside the arguments of `format`, where literals may mix types.
    mixed: bool,
}

impl<'n> Checker<'n> {
    pub(super) fn new(this: Type<'n>, optional_old: bool) -> Checker<'n> {
        let old = if optional_old {
            Type::optional(this.clone())
        } else {
            this.clone()
        };
        Checker {
            scope: vec![("self".into(), this), ("oldSelf".into(), old)],
            problems: Vec::new(),
            uses_old: false,
            mixed: false,
        }
    }

    fn fail(&mut self, at: usize, message: String) -> Type<'n> {
        self.problems.push(Problem::new(at, message));
        // What depends on it is not reported once more.
        Type::Dyn
    }

    fn variable(&self, name: &str) -> Option<usize> {
        self.scope.iter().rposition(|(known, _)| known == name)
    }

    /// The type of an expression.
    pub(super) fn check(&mut self, expr: &mut Expr) -> Type<'n> {
        let at = expr.at;
        if let Some(name) = self.type_name(expr) {
            expr.kind = Kind::Literal(Literal::Type(name));
        }
        match &mut expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Name(name) => match self.variable(name) {
                Some(place) => {
                    self.uses_old |= place == 1;
                    self.scope[place].1.clone()
                }
                None => {
                    let message = format!("undeclared reference to '{name}' (in container '')");
                    self.fail(at, message)
                }
            },
            Kind::Select { of, field, optional } => {
                let of = self.check(of);
                let found = self.select(at, &of, field);
                match of {
                    Type::Optional(_) => wrapped(found),
                    _ if *optional => wrapped(found),
                    _ => found,
                }
            }
            Kind::Has { of, field } => {
                let of = self.check(of);
                self.select(at, &of, field);
                BOOL
            }
            Kind::Index { of, index, optional } => {
                let (of, index) = (self.check(of), self.check(index));
                let found = self.index(at, &of, &index);
                match of {
                    Type::Optional(_) => wrapped(found),
                    _ if *optional => wrapped(found),
                    _ => found,
                }
            }
            Kind::And(operands) | Kind::Or(operands) => {
                for operand in operands {
                    let place = operand.at;
                    let found = self.check(operand);
                    self.want_bool(place, &found);
                }
                BOOL
            }
            Kind::If(parts) => {
                let [condition, yes, no] = &mut **parts;
                let (condition, yes, no) = (self.check(condition), self.check(yes), self.check(no));
                if BOOL.takes(&condition)
                    && let Some(joined) = join(&yes, &no)
                {
                    return joined;
                }
                self.no_overload(at, "_?_:_", false, &[condition, yes, no])
            }
            Kind::List(items) => {
                let mut joined: Option<Type<'n>> = None;
                for (item, optional) in items {
                    let place = item.at;
                    let mut found = self.check(item);
                    if *optional {
                        found = self.unwrap(place, found);
                    }
                    joined = Some(self.same(place, joined, found));
                }
                Type::list(joined.unwrap_or(Type::Dyn))
            }
            Kind::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (key, value, optional) in entries {
                    let (key_at, value_at) = (key.at, value.at);
                    let mut key = self.check(key);
                    // Such keys have no use, and types made of them would double in size with every use.
                    if !matches!(key, Type::Plain(_) | Type::Dyn | Type::Null) {
                        key = self.fail(key_at, format!("unsupported map key type: {key}"));
                    }
                    let mut value = self.check(value);
                    if *optional {
                        value = self.unwrap(value_at, value);
                    }
                    keys = Some(self.same(key_at, keys, key));
                    values = Some(self.same(value_at, values, value));
                }
                Type::map(keys.unwrap_or(Type::Dyn), values.unwrap_or(Type::Dyn))
            }
            Kind::Macro {
                which,
                range,
                names,
                body,
            } => {
                let place = range.at;
                let range = self.check(range);
                self.comprehension(*which, (place, range), names, body)
            }
            Kind::Call { function, target, args } => {
                // `sets.contains(a, b)` is no method of `sets`.
                if let Some(space) = target.as_deref().and_then(qualified) {
                    let full = format!("{space}.{function}");
                    let first = space.split('.').next().unwrap_or_default();
                    if self.variable(first).is_none() && FUNCTIONS.contains_key(full.as_str()) {
                        (*function, *target) = (full, None);
                    }
                }
                let member = target.is_some();
                let outside = std::mem::replace(&mut self.mixed, function == "format");
                let all: Vec<&mut Expr> = target.as_deref_mut().into_iter().chain(args.iter_mut()).collect();
                let types: Vec<Type<'n>> = all.into_iter().map(|arg| self.check(arg)).collect();
                self.mixed = outside;
                if let Some(problem) = bad_literal(function, member, args) {
                    self.problems.push(problem);
                }
                self.call(at, function, member, &types)
            }
        }
    }

    /// A name, qualified or not, that stands for a type.
    fn type_name(&self, expr: &Expr) -> Option<&'static str> {
        let name = qualified(expr)?;
        let first = name.split('.').next().unwrap_or_default();
        if self.variable(first).is_some() {
            return None;
        }
        TYPE_NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, full)| *full)
    }

    fn select(&mut self, at: usize, of: &Type<'n>, field: &mut String) -> Type<'n> {
        match of {
            Type::Optional(of) => self.select(at, of, field),
            Type::Dyn => Type::Dyn,
            Type::Map(key, value) if STRING.takes(key) => (**value).clone(),
            Type::Object { .. } | Type::Metadata => match of.field(field) {
                Some((found, name)) => {
                    *field = name;
                    found
                }
                None => self.fail(at, format!("undefined field '{field}'")),
            },
            other => self.fail(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn index(&mut self, at: usize, of: &Type<'n>, index: &Type<'n>) -> Type<'n> {
        match of {
            Type::Optional(of) => self.index(at, of, index),
            Type::Dyn => Type::Dyn,
            Type::List(item) if INT.takes(index) => (**item).clone(),
            Type::Map(key, value) if key.takes(index) => (**value).clone(),
            _ => self.no_overload(at, "_[_]", false, &[of.clone(), index.clone()]),
        }
    }

    fn want_bool(&mut self, at: usize, found: &Type<'n>) {
        if !BOOL.takes(found) {
            self.fail(at, format!("expected type 'bool' but found '{found}'"));
        }
    }

    fn unwrap(&mut self, at: usize, found: Type<'n>) -> Type<'n> {
        match found {
            Type::Optional(of) => (*of).clone(),
            Type::Dyn => Type::Dyn,
            other => self.fail(at, format!("expected type 'optional_type(dyn)' but found '{other}'")),
        }
    }

    /// One type for all parts of a literal.
    fn same(&mut self, at: usize, before: Option<Type<'n>>, found: Type<'n>) -> Type<'n> {
        let Some(before) = before else { return found };
        if self.mixed {
            return Type::Dyn;
        }
        match join(&before, &found) {
            Some(joined) => joined,
            None => self.fail(at, format!("expected type '{before}' but found '{found}'")),
        }
    }

    fn comprehension(
        &mut self,
        which: Macro,
        (place, range): (usize, Type<'n>),
        names: &[String],
        body: &mut [Expr],
    ) -> Type<'n> {
        let depth = self.scope.len();
        let pair = match (&range, which) {
            (Type::Optional(of), Macro::OptMap | Macro::OptFlatMap) => ((**of).clone(), Type::Dyn),
            (Type::Dyn, _) => (Type::Dyn, Type::Dyn),
            (Type::List(item), _) if names.len() == 1 => ((**item).clone(), Type::Dyn),
            (Type::List(item), _) => (INT, (**item).clone()),
            (Type::Map(key, value), _) if which != Macro::SortBy => ((**key).clone(), (**value).clone()),
            (other, _) => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fail(place, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        for (name, bound) in names.iter().zip([pair.0.clone(), pair.1.clone()]) {
            self.scope.push((name.clone(), bound));
        }
        let mut results = Vec::new();
        for expr in body.iter_mut() {
            results.push((expr.at, self.check(expr)));
        }
        self.scope.truncate(depth);
        // The condition comes first where there is one.
        let conditional = match which {
            Macro::All | Macro::Exists | Macro::ExistsOne | Macro::Filter => true,
            Macro::SortBy | Macro::OptMap | Macro::OptFlatMap => false,
            _ => results.len() == 2,
        };
        if conditional && let Some((at, found)) = results.first() {
            self.want_bool(*at, found);
        }
        let (at, last) = results.pop().unwrap_or((place, Type::Dyn));
        match which {
            Macro::All | Macro::Exists | Macro::ExistsOne => BOOL,
            Macro::Filter => Type::list(pair.0),
            Macro::SortBy => range,
            Macro::Map | Macro::TransformList => Type::list(last),
            Macro::TransformMap => Type::map(pair.0, last),
            Macro::TransformMapEntry => match last {
                Type::Map(..) | Type::Dyn => last,
                other => self.fail(at, format!("expected type 'map(dyn, dyn)' but found '{other}'")),
            },
            Macro::OptMap => Type::optional(last),
            Macro::OptFlatMap => {
                let inner = self.unwrap(at, last);
                Type::optional(inner)
            }
        }
    }

    fn call(&mut self, at: usize, function: &str, member: bool, args: &[Type<'n>]) -> Type<'n> {
        let key = if matches!(function, "_<=_" | "_>_" | "_>=_") {
            "_<_"
        } else {
            function
        };
        let Some(signatures) = FUNCTIONS.get(key) else {
            return self.fail(at, format!("undeclared reference to '{function}' (in container '')"));
        };
        let mut results = signatures
            .iter()
            .filter(|s| s.member == member)
            .filter_map(|s| apply(s, args));
        let Some(first) = results.next() else {
            return self.no_overload(at, function, member, args);
        };
        let guess = args.iter().any(|arg| matches!(arg, Type::Dyn));
        let name = first.to_string();
        if guess && results.any(|other| other.to_string() != name) {
            return Type::Dyn;
        }
        first
    }

    fn no_overload(&mut self, at: usize, function: &str, member: bool, args: &[Type<'n>]) -> Type<'n> {
        let names: Vec<String> = args.iter().map(ToString::to_string).collect();
        let applied = match names.split_first() {
            Some((target, rest)) if member => format!("{target}.({})", rest.join(", ")),
            _ => format!("({})", names.join(", ")),
        };
        self.fail(
            at,
            format!("found no matching overload for '{function}' applied to '{applied}'"),
        )
    }
}

fn wrapped(found: Type<'_>) -> Type<'_> {
    match found {
        Type::Optional(_) => found,
        other => Type::optional(other),
    }
}

fn literal_type(literal: &Literal) -> Type<'static> {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => BOOL,
        Literal::Int(_) => INT,
        Literal::Uint(_) => Type::Plain("uint"),
        Literal::Double(_) => Type::Plain("double"),
        Literal::String(_) => STRING,
        Literal::Bytes(_) => Type::Plain("bytes"),
        Literal::Type(_) => Type::Plain("type"),
    }
}

/// `a.b.c` of plain names.
fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Name(name) => Some(name.clone()),
        Kind::Select {
            of,
            field,
            optional: false,
        } => Some(format!("{}.{field}", qualified(of)?)),
        _ => None,
    }
}

/// The more telling of two types that fit each other.
fn join<'n>(a: &Type<'n>, b: &Type<'n>) -> Option<Type<'n>> {
    match (a, b) {
        (Type::Null, _) if a.takes(b) => Some(b.clone()),
        _ if a.takes(b) => Some(a.clone()),
        _ => None,
    }
}

/// The result of a signature for arguments, if they fit.
fn apply<'n>(signature: &Signature, args: &[Type<'n>]) -> Option<Type<'n>> {
    if signature.args.len() != args.len() {
        return None;
    }
    let mut bound: [Option<Type<'n>>; 2] = [None, None];
    for (wanted, found) in signature.args.iter().zip(args) {
        if !unify(&wanted.to_type(), found, &mut bound) {
            return None;
        }
    }
    Some(resolve(&signature.result.to_type(), &bound))
}

fn unify<'n>(wanted: &Type<'n>, found: &Type<'n>, bound: &mut [Option<Type<'n>>; 2]) -> bool {
    match (wanted, found) {
        (Type::Param(letter), _) => {
            let slot = &mut bound[usize::from(*letter) % 2];
            match slot {
                None | Some(Type::Dyn) => {
                    *slot = Some(found.clone());
                    true
                }
                Some(before) => match join(before, found) {
                    Some(joined) => {
                        *slot = Some(joined);
                        true
                    }
                    None => false,
                },
            }
        }
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => unify(a, b, bound),
        (Type::Map(a, x), Type::Map(b, y)) => unify(a, b, bound) && unify(x, y, bound),
        _ => wanted.takes(found),
    }
}

fn resolve<'n>(result: &Type<'n>, bound: &[Option<Type<'n>>; 2]) -> Type<'n> {
    match result {
        Type::Param(letter) => bound[usize::from(*letter) % 2].clone().unwrap_or(Type::Dyn),
        Type::List(item) => Type::list(resolve(item, bound)),
        Type::Optional(of) => Type::optional(resolve(of, bound)),
        Type::Map(key, value) => Type::map(resolve(key, bound), resolve(value, bound)),
        other => other.clone(),
    }
}

/// Literals that can only fail at runtime are refused at once.
fn bad_literal(function: &str, member: bool, args: &[Expr]) -> Option<Problem> {
    let place = match function {
        "matches" | "find" | "findAll" => usize::from(!member),
        "duration" | "timestamp" => 0,
        _ => return None,
    };
    let arg = args.get(place)?;
    let Kind::Literal(Literal::String(text)) = &arg.kind else {
        return None;
    };
    let bad = match function {
        "duration" => super::functions::parse_duration(text).is_none(),
        "timestamp" => super::functions::parse_timestamp(text).is_none(),
        _ => super::functions::regex(text).is_err(),
    };
    bad.then(|| Problem::new(arg.at, format!("invalid {function} argument")))
}
