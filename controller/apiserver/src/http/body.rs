//! Request bodies: bounded, JSON or YAML or (for core kinds) protobuf, with duplicate keys noticed.

use std::fmt;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::child;
use crate::status::Failure;

/// Largest body, in bytes; kube-apiserver's limit.
pub const LIMIT: usize = 3 * 1024 * 1024;

/// A parsed body.
#[derive(Debug, Default)]
pub struct Decoded {
    /// What it says; the last of duplicate keys wins.
    pub value: Value,
    /// Paths of keys that stood twice in one object.
    pub duplicates: Vec<String>,
}

/// Reads a whole body of at most [`LIMIT`] bytes.
pub async fn read(body: axum::body::Body) -> Result<Bytes, Failure> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Failure::too_large(LIMIT)),
        Err(error) => Err(Failure::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// Parses JSON, or YAML when it is not an object in JSON.
///
/// # Errors
/// The parser's words.
pub fn parse(bytes: &[u8]) -> Result<Decoded, String> {
    let mut duplicates = Vec::new();
    let seed = Seed {
        path: String::new(),
        duplicates: &mut duplicates,
    };
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    let value = if matches!(first, Some(b'{' | b'[')) {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value = seed
            .deserialize(&mut json)
            .map_err(|e| format!("json parse error: {e}"))?;
        json.end().map_err(|e| format!("json parse error: {e}"))?;
        value
    } else {
        let text = std::str::from_utf8(bytes).map_err(|e| format!("yaml parse error: {e}"))?;
        // Aliases and tags of YAML come out as plain values; the JSON text is what counts from here on.
        serde_saphyr::from_str::<Value>(text).map_err(|e| format!("yaml parse error: {e}"))?
    };
    Ok(Decoded { value, duplicates })
}

struct Seed<'a> {
    path: String,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let seed = Seed {
                path: format!("{}[{}]", self.path, list.len()),
                duplicates: self.duplicates,
            };
            match items.next_element_seed(seed)? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = child(&self.path, &key);
            if map.contains_key(&key) {
                if self.duplicates.len() >= 100 {
                    return Err(A::Error::custom("too many duplicate fields"));
                }
                self.duplicates.push(path.clone());
            }
            let seed = Seed {
                path,
                duplicates: self.duplicates,
            };
            let value = entries.next_value_seed(seed)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_noticed_with_its_path() {
        let decoded = parse(br#"{"spec":{"cpus":1,"disks":[{"name":"a","name":"b"}],"cpus":2}}"#).expect("valid JSON");
        assert_eq!(decoded.duplicates, ["spec.disks[0].name", "spec.cpus"]);
        assert_eq!(decoded.value["spec"]["cpus"], 2);
    }

    #[test]
    fn yaml_is_read_like_json() {
        let decoded = parse(b"kind: Thing\nspec:\n  count: 3\n").expect("valid YAML");
        assert_eq!(decoded.value["spec"]["count"], 3);
        let error = parse(b"{\"a\":").expect_err("not JSON");
        assert!(error.starts_with("json parse error"), "{error}");
    }
}
