//! The data of records, decoded: whether two hold the same, and what a patch makes of them.

use std::fmt::Debug;

use databroker_proto::{Record, message_name};
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage as _, Value};
use prost_types::Any;

use crate::store::samples::descriptors;

/// Data that can be looked into: there, of a known type, and not broken.
pub(super) fn opened(data: Option<&Any>) -> Option<DynamicMessage> {
    let Any { type_url, value } = data?;
    let message = descriptors().message(message_name(type_url))?;
    DynamicMessage::decode(message, &value[..]).ok()
}

/// Fails unless the records are the same; the fields of their data may stand in another order.
#[track_caller]
pub(super) fn assert_same(found: &[Record], expected: &[Record], of: &dyn Debug) {
    let same = found.len() == expected.len() && found.iter().zip(expected).all(|(one, other)| are_same(one, other));
    assert!(same, "{of:?}\nfound {found:#?}\nexpected {expected:#?}");
}

fn are_same(one: &Record, other: &Record) -> bool {
    let bare = |record: &Record| Record { data: None, ..record.clone() };
    let content = |record: &Record| Some((record.data.clone()?.type_url, opened(record.data.as_ref())?));
    one == other || (bare(one) == bare(other) && content(one).is_some() && content(one) == content(other))
}

/// The stored data with what the mask names as the input has it; `None` if that is to be refused.
pub(super) fn patched(stored: &Any, input: &Any, mask: &[String]) -> Option<Any> {
    let (mut target, source) = (opened(Some(stored))?, opened(Some(input))?);
    let message = target.descriptor();
    if message != source.descriptor() || !mask.iter().all(|path| leads_somewhere(&message, path)) {
        return None;
    }
    // One path after the other: a parent covers its children, before them and after them.
    mask.iter().for_each(|path| copy(path, &mut target, &source));
    Some(Any { type_url: stored.type_url.clone(), value: target.encode_to_vec() })
}

fn split(path: &str) -> (&str, Option<&str>) {
    path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)))
}

fn leads_somewhere(message: &MessageDescriptor, path: &str) -> bool {
    let (name, rest) = split(path);
    match (message.get_field_by_name(name), rest) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(field), Some(rest)) => match field.kind() {
            Kind::Message(inner) if !field.is_list() && !field.is_map() => leads_somewhere(&inner, rest),
            _ => false,
        },
    }
}

fn copy(path: &str, target: &mut DynamicMessage, source: &DynamicMessage) {
    let (name, rest) = split(path);
    let field = target.descriptor().get_field_by_name(name).unwrap();
    let (had, has) = (target.has_field(&field), source.has_field(&field));
    match rest {
        None if has => target.set_field(&field, source.get_field(&field).into_owned()),
        None => target.clear_field(&field),
        // What only one side has is empty on the other.
        Some(rest) if had || has => {
            let source = source.get_field(&field);
            if let (Value::Message(target), Value::Message(source)) = (target.get_field_mut(&field), &*source) {
                copy(rest, target, source);
            }
        }
        Some(_) => {}
    }
}
