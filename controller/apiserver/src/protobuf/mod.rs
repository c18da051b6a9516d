//! Bodies in `application/vnd.kubernetes.protobuf`: decoding only, for the kinds that clients send so.
//!
//! kubectl and Helm write a few core kinds in this form whatever the server offers. A body is the four
//! bytes `k8s\0` and a `runtime.Unknown`, whose `raw` is the object. What comes out is the JSON that
//! Go would write for the same object: zero values are absent, bytes are base64, times RFC 3339.

mod messages;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value};

/// The media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const PREFIX: &[u8] = b"k8s\0";

/// A body that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no such message: 400 BadRequest.
    #[error("provided data does not appear to be a protobuf message: {0}")]
    Malformed(String),
    /// The kind is not one that this server reads as protobuf: 415 UnsupportedMediaType.
    #[error("{kind} in version \"{api_version}\" is not accepted as {MEDIA_TYPE}; send it as application/json")]
    UnknownKind {
        /// As sent.
        api_version: String,
        /// As sent.
        kind: String,
    },
}

/// How a field's value is written, and what it becomes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Integer,
    Bool,
    /// Base64 text.
    Bytes,
    /// Seconds, RFC 3339.
    Time,
    /// Microseconds, RFC 3339.
    MicroTime,
    /// A message around JSON text (`FieldsV1`).
    Json,
    Message(&'static [Field]),
}

/// How often a field may appear, and whether its zero value counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Always sent by Go clients: the zero value means absent.
    Plain,
    /// A pointer in Go: a zero that was sent is kept.
    Pointer,
    List,
    /// Text keys to values of the kind.
    Map,
}

/// One field of a message: number on the wire, name in JSON.
#[derive(Clone, Copy, Debug)]
struct Field {
    number: u32,
    name: &'static str,
    shape: Shape,
    kind: Kind,
}

/// Decodes a request body into the object that it holds, with its `apiVersion` and `kind`.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Value, DecodeError> {
    let body = bytes
        .strip_prefix(PREFIX)
        .ok_or_else(|| malformed("it does not begin with k8s\\0"))?;
    let unknown = Unknown::read(body)?;
    if !unknown.encoding.is_empty() || !(unknown.media.is_empty() || unknown.media == MEDIA_TYPE) {
        return Err(malformed("it holds data in another encoding"));
    }
    let Some(fields) = messages::find(&unknown.api_version, &unknown.kind) else {
        return Err(DecodeError::UnknownKind {
            api_version: unknown.api_version,
            kind: unknown.kind,
        });
    };
    let mut object = message(fields, unknown.raw)?;
    object.insert("apiVersion".into(), unknown.api_version.into());
    object.insert("kind".into(), unknown.kind.into());
    Ok(Value::Object(object))
}

/// `k8s.io/apimachinery/pkg/runtime.Unknown`
#[derive(Default)]
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    encoding: String,
    media: String,
}

impl<'a> Unknown<'a> {
    fn read(body: &'a [u8]) -> Result<Unknown<'a>, DecodeError> {
        let mut unknown = Unknown::default();
        let mut rest = body;
        while rest.has_remaining() {
            let (number, wire) = key(&mut rest)?;
            match number {
                1 => {
                    let mut meta = chunk(wire, &mut rest)?;
                    while meta.has_remaining() {
                        let (number, wire) = key(&mut meta)?;
                        match number {
                            1 => unknown.api_version = text(chunk(wire, &mut meta)?)?,
                            2 => unknown.kind = text(chunk(wire, &mut meta)?)?,
                            _ => skip(wire, number, &mut meta)?,
                        }
                    }
                }
                2 => unknown.raw = chunk(wire, &mut rest)?,
                3 => unknown.encoding = text(chunk(wire, &mut rest)?)?,
                4 => unknown.media = text(chunk(wire, &mut rest)?)?,
                _ => skip(wire, number, &mut rest)?,
            }
        }
        Ok(unknown)
    }
}

fn malformed(why: impl std::fmt::Display) -> DecodeError {
    DecodeError::Malformed(why.to_string())
}

fn key(rest: &mut &[u8]) -> Result<(u32, WireType), DecodeError> {
    decode_key(rest).map_err(malformed)
}

fn skip(wire: WireType, number: u32, rest: &mut &[u8]) -> Result<(), DecodeError> {
    skip_field(wire, number, rest, DecodeContext::default()).map_err(malformed)
}

/// The bytes of a length-delimited field.
fn chunk<'a>(wire: WireType, rest: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    if wire != WireType::LengthDelimited {
        return Err(malformed("a field has the wrong wire type"));
    }
    let length = decode_varint(rest).map_err(malformed)?;
    let whole: &'a [u8] = rest;
    let length = usize::try_from(length)
        .ok()
        .filter(|n| *n <= whole.len())
        .ok_or_else(|| malformed("unexpected end"))?;
    let (chunk, after) = whole.split_at(length);
    *rest = after;
    Ok(chunk)
}

fn text(bytes: &[u8]) -> Result<String, DecodeError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a text is not UTF-8"))
}

fn varint(wire: WireType, rest: &mut &[u8]) -> Result<u64, DecodeError> {
    if wire != WireType::Varint {
        return Err(malformed("a field has the wrong wire type"));
    }
    decode_varint(rest).map_err(malformed)
}

fn message(fields: &[Field], bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    let mut object = Map::new();
    let mut rest = bytes;
    while rest.has_remaining() {
        let (number, wire) = key(&mut rest)?;
        let Some(field) = fields.iter().find(|f| f.number == number) else {
            skip(wire, number, &mut rest)?;
            continue;
        };
        match field.shape {
            Shape::Plain => {
                let value = value(field.kind, wire, &mut rest)?;
                if is_zero(&value) {
                    object.remove(field.name);
                } else {
                    object.insert(field.name.to_owned(), value);
                }
            }
            Shape::Pointer => {
                let value = value(field.kind, wire, &mut rest)?;
                object.insert(field.name.to_owned(), value);
            }
            Shape::List => {
                let value = value(field.kind, wire, &mut rest)?;
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(items) = list {
                    items.push(value);
                }
            }
            Shape::Map => {
                let (name, value) = entry(field.kind, chunk(wire, &mut rest)?)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(name, value);
                }
            }
        }
    }
    Ok(object)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// An entry of a map: key 1, value 2; either may be missing when it is empty.
fn entry(kind: Kind, bytes: &[u8]) -> Result<(String, Value), DecodeError> {
    let (mut name, mut held) = (String::new(), Value::from(""));
    let mut rest = bytes;
    while rest.has_remaining() {
        let (number, wire) = key(&mut rest)?;
        match number {
            1 => name = text(chunk(wire, &mut rest)?)?,
            2 => held = value(kind, wire, &mut rest)?,
            _ => skip(wire, number, &mut rest)?,
        }
    }
    Ok((name, held))
}

fn value(kind: Kind, wire: WireType, rest: &mut &[u8]) -> Result<Value, DecodeError> {
    Ok(match kind {
        Kind::Text => text(chunk(wire, rest)?)?.into(),
        // Two's complement: negative numbers travel as huge ones.
        Kind::Integer => (varint(wire, rest)? as i64).into(),
        Kind::Bool => (varint(wire, rest)? != 0).into(),
        Kind::Bytes => base64::engine::general_purpose::STANDARD
            .encode(chunk(wire, rest)?)
            .into(),
        Kind::Time => time(chunk(wire, rest)?, false)?,
        Kind::MicroTime => time(chunk(wire, rest)?, true)?,
        Kind::Json => json(chunk(wire, rest)?)?,
        Kind::Message(fields) => Value::Object(message(fields, chunk(wire, rest)?)?),
    })
}

/// Seconds and nanoseconds; an empty message is Go's zero time.
fn time(bytes: &[u8], micros: bool) -> Result<Value, DecodeError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut rest = bytes;
    while rest.has_remaining() {
        let (number, wire) = key(&mut rest)?;
        match number {
            1 => seconds = varint(wire, &mut rest)? as i64,
            2 => nanos = varint(wire, &mut rest)? as i32,
            _ => skip(wire, number, &mut rest)?,
        }
    }
    let kept = if micros { nanos } else { 0 };
    let form = if micros {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    let out_of_range = || malformed("a time is out of range");
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(out_of_range());
    }
    let moment = jiff::Timestamp::new(seconds, kept).map_err(|_| out_of_range())?;
    Ok(moment.strftime(form).to_string().into())
}

fn json(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut rest = bytes;
    let mut value = Value::Null;
    while rest.has_remaining() {
        let (number, wire) = key(&mut rest)?;
        if number == 1 {
            value = serde_json::from_slice(chunk(wire, &mut rest)?).map_err(malformed)?;
        } else {
            skip(wire, number, &mut rest)?;
        }
    }
    Ok(value)
}
