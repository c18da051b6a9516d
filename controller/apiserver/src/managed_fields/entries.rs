//! `metadata.managedFields`: the list of owners and what each owns.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::set::Set;
use super::{Writer, fields_v1};
use crate::schema::{go_json, quote};

/// How an owner came to own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Who owns: appliers at all versions are the same owner, updaters are not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    /// The JSON form: owners are ordered by it.
    order: String,
    pub(crate) operation: Operation,
    pub(crate) manager: String,
    /// Empty for appliers.
    api_version: String,
    subresource: String,
}

impl Owner {
    pub(crate) fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Owner {
        let api_version = match operation {
            Operation::Apply => "",
            Operation::Update => api_version,
        };
        let fields = [
            ("manager", manager),
            ("operation", operation.name()),
            ("apiVersion", api_version),
            ("subresource", subresource),
        ];
        let fields: Vec<String> = fields
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("\"{name}\":{}", go_json(&value.into())))
            .collect();
        Owner {
            order: format!("{{{}}}", fields.join(",")),
            operation,
            manager: manager.to_owned(),
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    pub(crate) fn of(writer: &Writer<'_>, operation: Operation) -> Owner {
        let manager = if writer.manager.is_empty() {
            "unknown"
        } else {
            writer.manager
        };
        Owner::new(manager, operation, writer.api_version, writer.subresource)
    }

    /// How a conflict names the owner.
    pub(crate) fn describe(&self) -> String {
        let mut text = quote(&self.manager);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {}", quote(&self.subresource));
        }
        if self.operation == Operation::Update {
            text += &format!(" using {}", self.api_version);
        }
        text
    }
}

/// What an owner owns.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) set: Set,
    pub(crate) api_version: String,
    pub(crate) time: Option<Timestamp>,
}

/// All owners of an object's fields.
pub(crate) type Owners = BTreeMap<Owner, Owned>;

/// An entry as it was sent; anything of a wrong type makes the whole list unreadable.
pub(crate) struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    fields_type: String,
    subresource: String,
    time: Option<Timestamp>,
    fields: Option<Value>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        let texts = [
            &self.manager,
            &self.operation,
            &self.api_version,
            &self.fields_type,
            &self.subresource,
        ];
        texts.iter().all(|text| text.is_empty()) && self.time.is_none() && self.fields.is_none()
    }

    fn read(value: &Value) -> Option<Entry> {
        let map = value.as_object()?;
        let text = |name: &str| match map.get(name) {
            None | Some(Value::Null) => Some(String::new()),
            Some(value) => value.as_str().map(str::to_owned),
        };
        let time = match map.get("time") {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_str()?.parse().ok()?),
        };
        Some(Entry {
            manager: text("manager")?,
            operation: text("operation")?,
            api_version: text("apiVersion")?,
            fields_type: text("fieldsType")?,
            subresource: text("subresource")?,
            time,
            fields: map.get("fieldsV1").filter(|v| !v.is_null()).cloned(),
        })
    }
}

/// The entries of an object; none when it has no list of them or one that cannot be read.
pub(crate) fn read(object: &Value) -> Option<Vec<Entry>> {
    let list = object.get("metadata")?.get("managedFields")?.as_array()?;
    list.iter().map(Entry::read).collect()
}

/// An empty list, or a single empty entry: the writer wants to start afresh.
pub(crate) fn is_reset(entries: &[Entry]) -> bool {
    match entries {
        [] => true,
        [one] => one.is_empty(),
        _ => false,
    }
}

/// Understands entries.
///
/// # Errors
/// What is wrong with one of them.
pub(crate) fn decode(entries: Vec<Entry>) -> Result<Owners, String> {
    let mut owners = Owners::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let operation = match entry.operation.as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".into()),
        };
        if entry.api_version.is_empty() {
            return Err("apiVersion must not be empty".into());
        }
        match entry.fields_type.as_str() {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
            other => {
                return Err(format!(
                    "invalid fieldsType {} in managed fields entry {index}",
                    quote(other)
                ));
            }
        }
        let set = match &entry.fields {
            Some(fields) => fields_v1::decode(fields).map_err(|e| format!("error decoding set: {e}"))?,
            None => Set::default(),
        };
        let owned = Owned {
            set,
            time: entry.time,
            api_version: entry.api_version.clone(),
        };
        let owner = Owner::new(&entry.manager, operation, &entry.api_version, &entry.subresource);
        owners.insert(owner, owned);
    }
    Ok(owners)
}

/// Writes the owners into an object, ordered as the API server orders them.
pub(crate) fn write(object: &mut Value, owners: &Owners) {
    remove(object);
    if owners.is_empty() {
        return;
    }
    let mut sorted: Vec<(&Owner, &Owned)> = owners.iter().collect();
    sorted.sort_by(|(a, x), (b, y)| {
        let seconds = |owned: &Owned| owned.time.map_or(0, Timestamp::as_second);
        a.operation
            .cmp(&b.operation)
            .then_with(|| seconds(x).cmp(&seconds(y)))
            .then_with(|| a.manager.cmp(&b.manager))
            .then_with(|| x.api_version.cmp(&y.api_version))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    let entries: Vec<Value> = sorted.into_iter().map(|(owner, owned)| entry(owner, owned)).collect();
    if let Some(object) = object.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("managedFields".into(), Value::Array(entries));
        }
    }
}

fn entry(owner: &Owner, owned: &Owned) -> Value {
    let mut entry = json!({
        "operation": owner.operation.name(),
        "apiVersion": owned.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields_v1::encode(&owned.set),
    });
    if !owner.manager.is_empty() {
        entry["manager"] = owner.manager.as_str().into();
    }
    if let Some(time) = owned.time.and_then(|t| Timestamp::from_second(t.as_second()).ok()) {
        entry["time"] = time.to_string().into();
    }
    if !owner.subresource.is_empty() {
        entry["subresource"] = owner.subresource.as_str().into();
    }
    entry
}

/// Takes the list off an object.
pub(crate) fn remove(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}
