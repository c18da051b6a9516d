//! Which fields of a request's kind can be owned, for `managed_fields`.

use crate::managed_fields::Types;
use crate::objects::Call;

/// The types of the request's kind; without a schema all lists are atomic.
pub(crate) fn types(call: &Call) -> Types<'_> {
    let schema = call.version().schema.as_ref().map(|s| s.root());
    match call.resource.core {
        Some(core) => Types::core(core, schema),
        None => Types::new(schema, call.has_status()),
    }
}
