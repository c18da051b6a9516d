//! Static types, and those that schemas mean.

use std::fmt;
use std::rc::Rc;

use crate::schema::node::{Additional, Node};

/// The type of an expression.
#[derive(Clone, Debug)]
pub(super) enum Type<'n> {
    /// Known at runtime only: int-or-string.
    Dyn,
    Null,
    /// A type without parameters, by its CEL name: `int`, `string`, `kubernetes.Quantity`...
    Plain(&'static str),
    List(Rc<Type<'n>>),
    Map(Rc<Type<'n>>, Rc<Type<'n>>),
    Optional(Rc<Type<'n>>),
    /// An object with named properties; `root` adds type and metadata.
    Object {
        node: &'n Node,
        root: bool,
    },
    /// The `metadata` of a root: name and generateName.
    Metadata,
    /// A parameter of a signature.
    Param(u8),
}

pub(super) const BOOL: Type<'static> = Type::Plain("bool");
pub(super) const INT: Type<'static> = Type::Plain("int");
pub(super) const STRING: Type<'static> = Type::Plain("string");

impl<'n> Type<'n> {
    pub(super) fn list(item: Type<'n>) -> Type<'n> {
        Type::List(Rc::new(item))
    }

    pub(super) fn map(key: Type<'n>, value: Type<'n>) -> Type<'n> {
        Type::Map(Rc::new(key), Rc::new(value))
    }

    pub(super) fn optional(of: Type<'n>) -> Type<'n> {
        Type::Optional(Rc::new(of))
    }

    /// What a schema's values are; none for those that rules cannot see.
    pub(super) fn of(node: &'n Node, root: bool) -> Option<Type<'n>> {
        if node.int_or_string {
            return Some(Type::Dyn);
        }
        Some(match node.kind.as_str() {
            "array" => {
                let items = node.items.as_deref()?;
                Type::list(Type::of(items, items.embedded)?)
            }
            "object" => match &node.additional {
                Some(Additional::Schema(value)) if !root => Type::map(STRING, Type::of(value, value.embedded)?),
                _ => Type::Object { node, root },
            },
            "string" => match node.format.as_str() {
                "byte" => Type::Plain("bytes"),
                "duration" => Type::Plain("google.protobuf.Duration"),
                "date" | "date-time" => Type::Plain("google.protobuf.Timestamp"),
                _ => STRING,
            },
            "boolean" => BOOL,
            "number" => Type::Plain("double"),
            "integer" => INT,
            _ => return None,
        })
    }

    /// The type of a property, and the property's name in JSON, for a field as a rule writes it.
    pub(super) fn field(&self, field: &str) -> Option<(Type<'n>, String)> {
        let name = unescape(field)?;
        let found = match self {
            Type::Object { root: true, .. } if name == "apiVersion" || name == "kind" => STRING,
            Type::Object { root: true, .. } if name == "metadata" => Type::Metadata,
            Type::Object { node, .. } => {
                let property = node.properties.get(&name)?;
                Type::of(property, property.embedded)?
            }
            Type::Metadata if name == "name" || name == "generateName" => STRING,
            _ => return None,
        };
        Some((found, name))
    }

    /// Whether a value of type `other` can stand where this one is wanted.
    pub(super) fn takes(&self, other: &Type<'n>) -> bool {
        match (self, other) {
            (Type::Dyn, _) | (_, Type::Dyn) | (Type::Null, Type::Null) => true,
            (Type::Plain(a), Type::Plain(b)) => a == b,
            (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => a.takes(b),
            (Type::Map(a, x), Type::Map(b, y)) => a.takes(b) && x.takes(y),
            (Type::Object { node: a, .. }, Type::Object { node: b, .. }) => std::ptr::eq(*a, *b),
            (Type::Metadata, Type::Metadata) => true,
            (Type::Param(a), Type::Param(b)) => a == b,
            // Values that may be absent or wrapped compare with null.
            (
                Type::Null,
                Type::Object { .. } | Type::Plain("google.protobuf.Timestamp" | "google.protobuf.Duration"),
            )
            | (
                Type::Object { .. } | Type::Plain("google.protobuf.Timestamp" | "google.protobuf.Duration"),
                Type::Null,
            ) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Dyn => f.write_str("dyn"),
            Type::Null => f.write_str("null"),
            Type::Plain("type") => f.write_str("type(dyn)"),
            Type::Plain("google.protobuf.Timestamp") => f.write_str("timestamp"),
            Type::Plain("google.protobuf.Duration") => f.write_str("duration"),
            Type::Plain(name) => f.write_str(name),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Optional(of) => write!(f, "optional_type({of})"),
            Type::Object { .. } | Type::Metadata => f.write_str("object"),
            Type::Param(letter) => write!(f, "{}", char::from(b'A' + letter)),
        }
    }
}

/// Words that a property's name is escaped for.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The property that a field of an expression names: `a__dash__b` is `a-b`; none for wrong escapes.
pub(super) fn unescape(field: &str) -> Option<String> {
    if let Some(word) = field.strip_prefix("__").and_then(|f| f.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return Some(word.to_owned());
    }
    let mut name = String::new();
    let mut rest = field;
    while let Some(start) = rest.find("__") {
        name.push_str(&rest[..start]);
        let (word, after) = rest[start + 2..].split_once("__")?;
        name.push_str(match word {
            "underscores" => "__",
            "dot" => ".",
            "dash" => "-",
            "slash" => "/",
            _ => return None,
        });
        rest = after;
    }
    name.push_str(rest);
    Some(name)
}
