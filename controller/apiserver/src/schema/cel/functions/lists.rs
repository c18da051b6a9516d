//! Lists, maps and sets.

use std::cmp::Ordering;

use super::{Tools, overflow};
use crate::schema::cel::value::{Fault, List, Outcome, Value};

pub(super) fn call<'a>(name: &str, args: &[Value<'a>], tools: &mut Tools) -> Option<Outcome<'a>> {
    use Value::{Bool, Int};
    match (name, args) {
        ("size", [Value::Map(map)]) => return Some(Ok(Int(map.len() as i64))),
        ("size", [Value::List(list)]) => return Some(Ok(Int(list.len() as i64))),
        ("@in", [key, Value::Map(map)]) => return Some(Ok(Bool(map.get(key).is_some()))),
        ("_+_", [Value::List(a), Value::List(b)]) => return Some(a.plus(b)),
        ("lists.range", [Int(n)]) => {
            let size = u64::try_from(*n).unwrap_or(0);
            let items = tools.meter.charge(size).map(|()| (0..*n).map(Int).collect());
            return Some(items.map(Value::list));
        }
        _ => {}
    }
    // The rest looks at all items.
    let (list, others) = match args {
        [item, Value::List(list)] if name == "@in" => (list, std::slice::from_ref(item)),
        [Value::List(list), others @ ..] => (list, others),
        _ => return None,
    };
    let items = match list.items() {
        Ok(items) => items,
        Err(fault) => return Some(Err(fault)),
    };
    whole(name, items, others, tools)
}

fn whole<'a>(name: &str, items: Vec<Value<'a>>, others: &[Value<'a>], tools: &mut Tools) -> Option<Outcome<'a>> {
    use Value::{Bool, Int};
    let place = |at: Option<usize>| Ok(Int(at.map_or(-1, |at| at as i64)));
    let compared = items.len() as u64 * u64::from(items.len().max(1).ilog2() + 1);
    Some(match (name, others) {
        ("@in", [item]) => Ok(Bool(items.iter().any(|known| known.equals(item)))),
        ("indexOf", [item]) => place(items.iter().position(|known| known.equals(item))),
        ("lastIndexOf", [item]) => place(items.iter().rposition(|known| known.equals(item))),
        ("first", []) => Ok(Value::Optional(items.into_iter().next().map(Into::into))),
        ("last", []) => Ok(Value::Optional(items.into_iter().next_back().map(Into::into))),
        ("reverse", []) => Ok(Value::list(items.into_iter().rev().collect())),
        ("slice", [Int(from), Int(to)]) => slice(items, *from, *to),
        ("flatten", []) => flatten(items, 1, tools).map(Value::list),
        ("flatten", [Int(depth)]) if *depth < 0 => Err(Fault::other("level must be non-negative")),
        ("flatten", [Int(depth)]) => flatten(items, *depth, tools).map(Value::list),
        ("isSorted", []) => sorted(&items),
        ("min", []) => extreme(items, Ordering::Less, "min"),
        ("max", []) => extreme(items, Ordering::Greater, "max"),
        ("sum", []) => sum(&items),
        ("sort", []) => tools
            .meter
            .charge(compared)
            .and_then(|()| sort(items.into_iter().map(|item| (item.clone(), item)).collect())),
        ("distinct", []) => distinct(items, tools),
        ("sets.contains", [Value::List(part)]) => contains(&items, part, tools).map(Bool),
        ("sets.equivalent", [Value::List(other)]) => other.items().and_then(|others| {
            let back = List::Own(items.clone().into());
            Ok(Bool(
                contains(&items, other, tools)? && contains(&others, &back, tools)?,
            ))
        }),
        ("sets.intersects", [Value::List(other)]) => other.items().and_then(|others| {
            pairs(&items, &others, tools)?;
            Ok(Bool(others.iter().any(|b| items.iter().any(|a| a.equals(b)))))
        }),
        _ => return None,
    })
}

/// Every item of `a` will be compared with every item of `b`.
fn pairs(a: &[Value<'_>], b: &[Value<'_>], tools: &mut Tools) -> Result<(), Fault> {
    let times = b.len() as u64;
    tools.meter.charge(times.saturating_mul(a.len() as u64))?;
    let (limit, mut parts) = (tools.meter.left(), 0);
    a.iter().for_each(|item| item.weigh(limit, &mut parts));
    tools.meter.charge(parts.saturating_mul(times))
}

fn contains<'a>(items: &[Value<'a>], part: &List<'a>, tools: &mut Tools) -> Result<bool, Fault> {
    let part = part.items()?;
    pairs(items, &part, tools)?;
    Ok(part.iter().all(|b| items.iter().any(|a| a.equals(b))))
}

fn distinct<'a>(items: Vec<Value<'a>>, tools: &mut Tools) -> Outcome<'a> {
    let mut kept: Vec<Value<'a>> = Vec::new();
    for item in items {
        pairs(std::slice::from_ref(&item), &kept, tools)?;
        if !kept.iter().any(|known| known.equals(&item)) {
            kept.push(item);
        }
    }
    Ok(Value::list(kept))
}

fn slice(items: Vec<Value<'_>>, from: i64, to: i64) -> Outcome<'_> {
    let size = items.len() as i64;
    let bad = |why: String| Err(Fault::Other(format!("cannot slice({from}, {to}), {why}")));
    if from < 0 || to < 0 {
        return bad("negative indexes not supported".into());
    }
    if from > to {
        return bad("start index must be less than or equal to end index".into());
    }
    if to > size {
        return bad(format!("list is length {size}"));
    }
    Ok(Value::list(items[from as usize..to as usize].to_vec()))
}

fn flatten<'a>(items: Vec<Value<'a>>, depth: i64, tools: &mut Tools) -> Result<Vec<Value<'a>>, Fault> {
    let mut flat = Vec::new();
    for item in items {
        tools.meter.charge(1)?;
        match item {
            Value::List(list) if depth > 0 => flat.extend(flatten(list.items()?, depth - 1, tools)?),
            other => flat.push(other),
        }
    }
    Ok(flat)
}

fn sorted<'a>(items: &[Value<'a>]) -> Outcome<'a> {
    for pair in items.windows(2) {
        match pair[0].compare(&pair[1]) {
            Some(Ordering::Greater) => return Ok(Value::Bool(false)),
            Some(_) => {}
            None => return Err(Fault::NoOverload),
        }
    }
    Ok(Value::Bool(true))
}

fn extreme<'a>(items: Vec<Value<'a>>, wanted: Ordering, name: &str) -> Outcome<'a> {
    let mut items = items.into_iter();
    let Some(mut best) = items.next() else {
        return Err(Fault::Other(format!("{name} called on empty list")));
    };
    for item in items {
        let order = item.compare(&best).ok_or(Fault::NoOverload)?;
        if order == wanted {
            best = item;
        }
    }
    Ok(best)
}

fn sum<'a>(items: &[Value<'a>]) -> Outcome<'a> {
    let mut total: Option<Value<'a>> = None;
    for item in items {
        total = Some(match (total, item) {
            (None, item) => item.clone(),
            (Some(Value::Int(a)), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(overflow)?),
            (Some(Value::Uint(a)), Value::Uint(b)) => Value::Uint(a.checked_add(*b).ok_or_else(overflow)?),
            (Some(Value::Double(a)), Value::Double(b)) => Value::Double(a + b),
            (Some(Value::Duration(a)), Value::Duration(b)) => Value::Duration(a.checked_add(*b).ok_or_else(overflow)?),
            _ => return Err(Fault::NoOverload),
        });
    }
    Ok(total.unwrap_or(Value::Int(0)))
}

/// Items in the order of their keys; all keys of one kind.
fn sort<'a>(mut keyed: Vec<(Value<'a>, Value<'a>)>) -> Outcome<'a> {
    let comparable = keyed
        .windows(2)
        .all(|pair| pair[0].0.type_name() == pair[1].0.type_name() && pair[0].0.compare(&pair[1].0).is_some());
    if !comparable {
        return Err(Fault::other("list elements must have the same type"));
    }
    keyed.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(Ordering::Equal));
    Ok(Value::list(keyed.into_iter().map(|(_, item)| item).collect()))
}

/// `sortBy`: items with the keys that were computed for them.
pub(in crate::schema::cel) fn sort_by_key<'a>(keyed: Vec<(Value<'a>, Value<'a>)>, tools: &mut Tools) -> Outcome<'a> {
    let size = keyed.len() as u64;
    tools.meter.charge(size * u64::from(size.max(1).ilog2() + 1))?;
    sort(keyed)
}
