//! What a schema says about merging: which maps and lists are one value, how list items are told apart.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::schema::{Additional, ListType, Node};

/// The type of one place in an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Type<'a> {
    /// Nothing may be here.
    Nothing,
    /// Anything; maps and lists are one value.
    Atomic,
    /// Anything; maps are granular, lists one value.
    Deduced,
    /// The whole object when its kind has no schema.
    Free,
    /// What the node says.
    Schema {
        node: &'a Node,
        /// Unknown fields are kept here and below.
        preserve: bool,
        /// The object or an embedded one: `metadata` is ObjectMeta.
        object: bool,
    },
}

/// The forms that a value may have; several when the schema leaves it open.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Atom<'a> {
    pub(crate) map: Option<MapType<'a>>,
    pub(crate) scalar: Option<Scalar>,
    pub(crate) list: Option<ListOf<'a>>,
}

/// The one form in which a value is treated.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form<'a> {
    Map(MapType<'a>),
    Scalar(Scalar),
    List(ListOf<'a>),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    Numeric,
    Text,
    Boolean,
    Any,
}

/// A map or an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapType<'a> {
    fields: Option<&'a BTreeMap<String, Node>>,
    preserve: bool,
    object: bool,
    /// Type of fields that are not named.
    pub(crate) element: Type<'a>,
    pub(crate) atomic: bool,
}

/// A list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListOf<'a> {
    pub(crate) element: Type<'a>,
    pub(crate) items: Items<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Items<'a> {
    Atomic,
    Set,
    Keyed(&'a [String]),
}

impl<'a> Type<'a> {
    /// The type of a whole object.
    pub(crate) fn root(node: Option<&'a Node>) -> Type<'a> {
        match node {
            None => Type::Free,
            Some(node) => Type::Schema {
                node,
                preserve: node.preserve_unknown,
                object: true,
            },
        }
    }

    fn of(node: &'a Node, preserve: bool) -> Type<'a> {
        Type::Schema {
            node,
            preserve: preserve || node.preserve_unknown,
            object: node.embedded,
        }
    }

    /// The forms that this type allows.
    pub(crate) fn atom(self) -> Atom<'a> {
        match self {
            Type::Nothing => Atom::default(),
            Type::Atomic => Atom::anything(Type::Atomic, true),
            Type::Deduced => Atom::anything(Type::Deduced, false),
            Type::Free => Atom {
                map: Some(MapType {
                    fields: None,
                    preserve: true,
                    object: true,
                    element: Type::Deduced,
                    atomic: false,
                }),
                ..Atom::default()
            },
            Type::Schema { node, preserve, object } => {
                let scalar = |scalar| Atom {
                    scalar: Some(scalar),
                    ..Atom::default()
                };
                match (node.kind.as_str(), node.format.as_str()) {
                    ("object", _) => Atom {
                        map: Some(map_of(node, preserve, object)),
                        ..Atom::default()
                    },
                    ("array", _) => Atom {
                        list: Some(list_of(node, preserve)),
                        ..Atom::default()
                    },
                    ("integer" | "number", _) => scalar(Scalar::Numeric),
                    ("boolean", _) => scalar(Scalar::Boolean),
                    ("string", "" | "byte") => scalar(Scalar::Text),
                    ("string", _) => scalar(Scalar::Any),
                    _ => Atom {
                        map: Some(map_of(node, preserve, object)),
                        scalar: Some(Scalar::Any),
                        list: Some(list_of(node, preserve)),
                    },
                }
            }
        }
    }

    /// The form in which `value` is treated.
    pub(crate) fn form(self, value: &Value) -> Form<'a> {
        self.atom().narrowed(Some(value)).form()
    }
}

impl<'a> Atom<'a> {
    fn anything(element: Type<'a>, atomic: bool) -> Atom<'a> {
        Atom {
            map: Some(MapType {
                fields: None,
                preserve: true,
                object: false,
                element,
                atomic,
            }),
            scalar: Some(Scalar::Any),
            list: Some(ListOf {
                element: Type::Atomic,
                items: Items::Atomic,
            }),
        }
    }

    /// Only the form that fits `value`; all of them when none does.
    pub(crate) fn narrowed(self, value: Option<&Value>) -> Atom<'a> {
        let none = Atom::default();
        match (value, self) {
            (Some(Value::Object(_)), Atom { map: map @ Some(_), .. }) => Atom { map, ..none },
            (
                Some(Value::Array(_)),
                Atom {
                    list: list @ Some(_), ..
                },
            ) => Atom { list, ..none },
            (
                Some(Value::Number(_) | Value::String(_) | Value::Bool(_)),
                Atom {
                    scalar: scalar @ Some(_),
                    ..
                },
            ) => Atom { scalar, ..none },
            _ => self,
        }
    }

    /// Whether two narrowings of one type are the same.
    pub(crate) fn same_forms(&self, other: &Atom<'_>) -> bool {
        self.map.is_some() == other.map.is_some()
            && self.scalar.is_some() == other.scalar.is_some()
            && self.list.is_some() == other.list.is_some()
    }

    pub(crate) fn form(self) -> Form<'a> {
        match self {
            Atom { map: Some(map), .. } => Form::Map(map),
            Atom {
                scalar: Some(scalar), ..
            } => Form::Scalar(scalar),
            Atom { list: Some(list), .. } => Form::List(list),
            _ => Form::Nothing,
        }
    }
}

impl<'a> MapType<'a> {
    /// The type of a named field.
    pub(crate) fn named(&self, name: &str) -> Option<Type<'a>> {
        if self.object {
            match name {
                "metadata" => return Some(Type::of(&META, false)),
                // An object without a schema still has these.
                "apiVersion" | "kind" => return Some(Type::of(&TEXT, false)),
                _ => {}
            }
        }
        let node = self.fields?.get(name)?;
        Some(Type::of(node, self.preserve))
    }

    /// The type of any field.
    pub(crate) fn field(&self, name: &str) -> Type<'a> {
        self.named(name).unwrap_or(self.element)
    }

    /// No field is named and any is allowed: such maps are left alone when a schema changes.
    pub(crate) fn is_free(&self) -> bool {
        let unnamed = !self.object && self.fields.is_none_or(BTreeMap::is_empty);
        let untyped = !matches!(self.element, Type::Atomic) && self.element.atom().scalar == Some(Scalar::Any);
        unnamed && untyped
    }
}

fn map_of(node: &Node, preserve: bool, object: bool) -> MapType<'_> {
    let element = match &node.additional {
        Some(Additional::Schema(node)) => Type::of(node, preserve),
        Some(Additional::Any(true)) => Type::Deduced,
        Some(Additional::Any(false)) => Type::Nothing,
        None if preserve || (node.properties.is_empty() && !object) => Type::Deduced,
        None => Type::Nothing,
    };
    MapType {
        fields: Some(&node.properties),
        preserve,
        object,
        element,
        atomic: node.map_atomic,
    }
}

fn list_of(node: &Node, preserve: bool) -> ListOf<'_> {
    ListOf {
        element: node
            .items
            .as_deref()
            .map_or(Type::Atomic, |item| Type::of(item, preserve)),
        items: match &node.list_type {
            None | Some(ListType::Atomic) => Items::Atomic,
            Some(ListType::Set) => Items::Set,
            Some(ListType::Map(keys)) => Items::Keyed(keys),
        },
    }
}

static TEXT: LazyLock<Node> = LazyLock::new(|| scalar("string", ""));

/// `io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta`.
static META: LazyLock<Node> = LazyLock::new(|| {
    let text = || scalar("string", "");
    let time = || scalar("string", "date-time");
    let texts = || Node {
        additional: Some(Additional::Schema(Box::new(text()))),
        ..object([])
    };
    let uid = Node {
        default: Some("".into()),
        ..text()
    };
    let owner = Node {
        map_atomic: true,
        ..object([
            ("apiVersion", text()),
            ("blockOwnerDeletion", scalar("boolean", "")),
            ("controller", scalar("boolean", "")),
            ("kind", text()),
            ("name", text()),
            ("uid", uid),
        ])
    };
    let managed = object([
        ("apiVersion", text()),
        ("fieldsType", text()),
        ("fieldsV1", object([])),
        ("manager", text()),
        ("operation", text()),
        ("subresource", text()),
        ("time", time()),
    ]);
    object([
        ("annotations", texts()),
        ("creationTimestamp", time()),
        ("deletionGracePeriodSeconds", scalar("integer", "int64")),
        ("deletionTimestamp", time()),
        ("finalizers", list(text(), ListType::Set)),
        ("generateName", text()),
        ("generation", scalar("integer", "int64")),
        ("labels", texts()),
        ("managedFields", list(managed, ListType::Atomic)),
        ("name", text()),
        ("namespace", text()),
        ("ownerReferences", list(owner, ListType::Map(vec!["uid".into()]))),
        ("resourceVersion", text()),
        ("selfLink", text()),
        ("uid", text()),
    ])
});

fn scalar(kind: &str, format: &str) -> Node {
    Node {
        kind: kind.into(),
        format: format.into(),
        ..Node::default()
    }
}

fn object<const N: usize>(fields: [(&str, Node); N]) -> Node {
    Node {
        kind: "object".into(),
        properties: fields.into_iter().map(|(name, node)| (name.into(), node)).collect(),
        ..Node::default()
    }
}

fn list(item: Node, kind: ListType) -> Node {
    Node {
        kind: "array".into(),
        items: Some(Box::new(item)),
        list_type: Some(kind),
        ..Node::default()
    }
}
