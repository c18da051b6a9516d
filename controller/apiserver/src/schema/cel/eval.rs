//! The evaluator.
//!
//! Every step costs one unit, and working on strings and lists costs by their size: a rule that exceeds
//! its budget ends with [`Fault::Budget`], so that none can keep the server busy.

use std::rc::Rc;

use super::ast::{Expr, Kind, Literal, Macro};
use super::functions;
use super::value::{Fault, List, Map, Outcome, Value};

/// What one rule may cost; the real server's limit in its own, similar units.
pub(super) const RULE_BUDGET: u64 = 1_000_000;

/// What is left of a budget.
#[derive(Debug)]
pub(super) struct Meter {
    left: u64,
}

impl Meter {
    pub(super) fn new(left: u64) -> Meter {
        Meter { left }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes off what it costs to look at all of `value`.
    pub(super) fn charge_for(&mut self, value: &Value<'_>) -> Result<(), Fault> {
        let mut cost = 0;
        value.weigh(self.left, &mut cost);
        self.charge(cost)
    }

    /// Takes `cost` off the budget.
    pub(super) fn charge(&mut self, cost: u64) -> Result<(), Fault> {
        if cost > self.left {
            self.left = 0;
            return Err(Fault::Budget);
        }
        self.left -= cost;
        Ok(())
    }
}

/// Variables and budget of one evaluation.
pub(super) struct Evaluator<'a, 'e> {
    scope: Vec<(&'e str, Value<'a>)>,
    pub tools: functions::Tools,
}

impl<'a, 'e> Evaluator<'a, 'e> {
    pub(super) fn new(this: Value<'a>, old: Option<Value<'a>>, budget: u64) -> Evaluator<'a, 'e> {
        let mut scope = vec![("self", this)];
        scope.extend(old.map(|old| ("oldSelf", old)));
        Evaluator {
            scope,
            tools: functions::Tools::new(Meter::new(budget)),
        }
    }

    /// The value of a checked expression.
    pub(super) fn eval(&mut self, expr: &'e Expr) -> Outcome<'a> {
        self.tools.meter.charge(1)?;
        match &expr.kind {
            Kind::Literal(literal) => Ok(constant(literal)),
            Kind::Name(name) => match self.scope.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => Ok(value.clone()),
                None => Err(Fault::Other(format!("no such attribute(s): {name}"))),
            },
            Kind::Select { of, field, optional } => {
                let of = self.eval(of)?;
                let key = || Value::text(field.as_str());
                self.lookup(of, *optional, key, |of| select(of, field))
            }
            Kind::Has { of, field } => {
                let of = match self.eval(of)? {
                    Value::Optional(None) => return Ok(Value::Bool(false)),
                    Value::Optional(Some(of)) => (*of).clone(),
                    of => of,
                };
                Ok(Value::Bool(select(&of, field)?.is_some()))
            }
            Kind::Index { of, index, optional } => {
                let (of, index) = (self.eval(of)?, self.eval(index)?);
                self.lookup(of, *optional, || index.clone(), |of| item(of, &index))
            }
            Kind::And(operands) => self.logic(operands, false),
            Kind::Or(operands) => self.logic(operands, true),
            Kind::If(parts) => {
                let [condition, yes, no] = &**parts;
                match self.eval(condition)? {
                    Value::Bool(true) => self.eval(yes),
                    Value::Bool(false) => self.eval(no),
                    _ => Err(Fault::NoOverload),
                }
            }
            Kind::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    let value = self.eval(item)?;
                    list.extend(if *optional { inner(value)? } else { Some(value) });
                }
                Ok(Value::list(list))
            }
            Kind::Map(entries) => {
                let mut map = Vec::with_capacity(entries.len());
                for (key, value, optional) in entries {
                    let key = self.eval(key)?;
                    let value = self.eval(value)?;
                    let value = if *optional { inner(value)? } else { Some(value) };
                    if let Some(value) = value {
                        // Of two equal keys the last one counts.
                        map.retain(|(known, _): &(Value<'a>, Value<'a>)| !known.equals(&key));
                        self.insert(&mut map, key, value)?;
                    }
                }
                Ok(Value::Map(Map::Own(Rc::new(map))))
            }
            Kind::Call { function, target, args } => {
                let mut values = Vec::with_capacity(args.len() + 1);
                for arg in target.as_deref().into_iter().chain(args) {
                    values.push(self.eval(arg)?);
                }
                functions::call(function, &values, &mut self.tools)
            }
            Kind::Macro {
                which,
                range,
                names,
                body,
            } => {
                let range = self.eval(range)?;
                self.comprehension(*which, range, names, body)
            }
        }
    }

    fn insert(&mut self, map: &mut Vec<(Value<'a>, Value<'a>)>, key: Value<'a>, value: Value<'a>) -> Result<(), Fault> {
        self.tools.meter.charge(1 + map.len() as u64 / 10)?;
        if map.iter().any(|(known, _)| known.equals(&key)) {
            let key = functions::plain_text(&key);
            return Err(Fault::Other(format!("insert failed: key {key} already exists")));
        }
        map.push((key, value));
        Ok(())
    }

    /// Selection and indexing: through optionals, and with `?` to an optional.
    fn lookup(
        &mut self,
        of: Value<'a>,
        optional: bool,
        key: impl Fn() -> Value<'a>,
        find: impl Fn(&Value<'a>) -> Result<Option<Value<'a>>, Fault>,
    ) -> Outcome<'a> {
        let (of, optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(of)) => ((*of).clone(), true),
            of => (of, optional),
        };
        match (find(&of)?, optional) {
            (Some(value @ Value::Optional(_)), true) => Ok(value),
            (Some(value), true) => Ok(Value::some(value)),
            (Some(value), false) => Ok(value),
            (None, true) => Ok(Value::Optional(None)),
            (None, false) => Err(Fault::Other(match (&of, key()) {
                (Value::List(_), Value::Int(index)) => format!("index out of bounds: {index}"),
                (_, key) => format!("no such key: {}", functions::plain_text(&key)),
            })),
        }
    }

    /// `&&` and `||`: an operand that decides wins over errors in the others.
    fn logic(&mut self, operands: &'e [Expr], decisive: bool) -> Outcome<'a> {
        let mut fault = None;
        for operand in operands {
            match self.eval(operand) {
                Ok(Value::Bool(flag)) if flag == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => fault = fault.or(Some(Fault::NoOverload)),
                Err(Fault::Budget) => return Err(Fault::Budget),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        fault.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    /// The values that the names of a macro take: one or two for each round.
    fn rounds(&mut self, range: &Value<'a>, two: bool) -> Result<Vec<[Value<'a>; 2]>, Fault> {
        self.tools.meter.charge_for(range)?;
        match range {
            Value::List(list) if two => {
                let items = list.items()?.into_iter().enumerate();
                Ok(items.map(|(i, item)| [Value::Int(i as i64), item]).collect())
            }
            Value::List(list) => Ok(list.items()?.into_iter().map(|item| [item, Value::Null]).collect()),
            Value::Map(map) => Ok(map.entries()?.into_iter().map(|(k, v)| [k, v]).collect()),
            _ => Err(Fault::NoOverload),
        }
    }

    fn bind(&mut self, names: &'e [String], values: [Value<'a>; 2], body: &'e Expr) -> Outcome<'a> {
        let depth = self.scope.len();
        self.scope.extend(names.iter().map(String::as_str).zip(values));
        let outcome = self.eval(body);
        self.scope.truncate(depth);
        outcome
    }

    fn comprehension(&mut self, which: Macro, range: Value<'a>, names: &'e [String], body: &'e [Expr]) -> Outcome<'a> {
        let Some(last) = body.last() else {
            return Err(Fault::NoOverload);
        };
        if let Macro::OptMap | Macro::OptFlatMap = which {
            let Value::Optional(of) = range else {
                return Err(Fault::NoOverload);
            };
            let Some(of) = of else {
                return Ok(Value::Optional(None));
            };
            let value = self.bind(names, [(*of).clone(), Value::Null], last)?;
            return Ok(if which == Macro::OptMap {
                Value::some(value)
            } else {
                value
            });
        }
        let rounds = self.rounds(&range, names.len() == 2)?;
        match which {
            Macro::All => self.quantifier(rounds, names, last, false),
            Macro::Exists => self.quantifier(rounds, names, last, true),
            Macro::ExistsOne => {
                let mut count = 0;
                for values in rounds {
                    count += u32::from(self.truth(names, values, last)?);
                }
                Ok(Value::Bool(count == 1))
            }
            Macro::Filter => {
                let mut kept = Vec::new();
                for values in rounds {
                    if self.truth(names, values.clone(), last)? {
                        let [first, _] = values;
                        kept.push(first);
                    }
                }
                Ok(Value::list(kept))
            }
            Macro::SortBy => {
                let mut keyed = Vec::with_capacity(rounds.len());
                for values in rounds {
                    let key = self.bind(names, values.clone(), last)?;
                    let [item, _] = values;
                    keyed.push((key, item));
                }
                functions::sort_by_key(keyed, &mut self.tools)
            }
            _ => self.transform(which, rounds, names, body, last),
        }
    }

    /// `map` and the transform macros: results of the rounds that the condition, if any, lets through.
    fn transform(
        &mut self,
        which: Macro,
        rounds: Vec<[Value<'a>; 2]>,
        names: &'e [String],
        body: &'e [Expr],
        last: &'e Expr,
    ) -> Outcome<'a> {
        let condition = (body.len() == 2).then(|| &body[0]);
        let (mut list, mut map) = (Vec::new(), Vec::new());
        for values in rounds {
            if let Some(condition) = condition
                && !self.truth(names, values.clone(), condition)?
            {
                continue;
            }
            let key = values[0].clone();
            let result = self.bind(names, values, last)?;
            match (which, result) {
                (Macro::TransformMap, value) => self.insert(&mut map, key, value)?,
                (Macro::TransformMapEntry, Value::Map(entries)) => {
                    for (key, value) in entries.entries()? {
                        self.insert(&mut map, key, value)?;
                    }
                }
                (Macro::TransformMapEntry, _) => return Err(Fault::NoOverload),
                (_, value) => list.push(value),
            }
        }
        Ok(match which {
            Macro::TransformMap | Macro::TransformMapEntry => Value::Map(Map::Own(Rc::new(map))),
            _ => Value::list(list),
        })
    }

    fn truth(&mut self, names: &'e [String], values: [Value<'a>; 2], body: &'e Expr) -> Result<bool, Fault> {
        match self.bind(names, values, body)? {
            Value::Bool(flag) => Ok(flag),
            _ => Err(Fault::NoOverload),
        }
    }

    fn quantifier(
        &mut self,
        rounds: Vec<[Value<'a>; 2]>,
        names: &'e [String],
        body: &'e Expr,
        decisive: bool,
    ) -> Outcome<'a> {
        let mut fault = None;
        for values in rounds {
            match self.truth(names, values, body) {
                Ok(flag) if flag == decisive => return Ok(Value::Bool(decisive)),
                Ok(_) => {}
                Err(Fault::Budget) => return Err(Fault::Budget),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        fault.map_or(Ok(Value::Bool(!decisive)), Err)
    }
}

fn constant<'a>(literal: &Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(flag) => Value::Bool(*flag),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(n) => Value::Double(*n),
        Literal::String(text) => Value::text(text.clone()),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
        Literal::Type(name) => Value::Type(name),
    }
}

/// What an optional item of a literal holds.
fn inner(value: Value<'_>) -> Result<Option<Value<'_>>, Fault> {
    match value {
        Value::Optional(of) => Ok(of.map(|of| (*of).clone())),
        _ => Err(Fault::NoOverload),
    }
}

fn select<'a>(of: &Value<'a>, field: &str) -> Result<Option<Value<'a>>, Fault> {
    match of {
        Value::Object(object) => object.get(field).transpose(),
        Value::Map(map) => map.get(&Value::text(field)).transpose(),
        _ => Err(Fault::NoOverload),
    }
}

fn item<'a>(of: &Value<'a>, index: &Value<'a>) -> Result<Option<Value<'a>>, Fault> {
    match (of, index) {
        (Value::List(list), Value::Int(index)) => match usize::try_from(*index) {
            Ok(index) if index < List::len(list) => list.get(index).map(Some),
            _ => Ok(None),
        },
        (Value::Map(map), key) => map.get(key).transpose(),
        _ => Err(Fault::NoOverload),
    }
}
