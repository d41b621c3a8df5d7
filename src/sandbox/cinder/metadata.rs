//! `/volumes/ID/metadata`. It is in a table of its own: the volume's `updated_at` stays.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Context, volume_mut};
use crate::sandbox::http::{ApiError, Reply};

/// Metadata as given: an object of texts, keys of 1 to 255 characters.
pub(super) fn parse(given: &Value) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(given) = given.as_object() else {
        return Err(ApiError::field("metadata", given, "is not of type 'object'"));
    };
    // Python shows it.
    let shown = || {
        let pairs = given.iter().map(|(key, value)| match value {
            Value::String(text) => format!("'{key}': '{text}'"),
            other => format!("'{key}': {other}"),
        });
        format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
    };
    let read = given.iter().map(|(key, value)| match is_key(key) {
        true => Ok((key.clone(), text(key, value)?)),
        false => Err(ApiError::bad(format!(
            "Invalid input for field/attribute metadata. Value: {}. '{key}' does not match any of \
             the regexes: '^[a-zA-Z0-9-_:. /]{{1,255}}$'",
            shown()
        ))),
    });
    read.collect()
}

fn is_key(key: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:. /".contains(&byte);
    (1..=255).contains(&key.len()) && key.bytes().all(allowed)
}

fn text(key: &str, value: &Value) -> Result<String, ApiError> {
    let fits = |text: &str| text.chars().count() <= 255;
    match value {
        Value::String(text) if fits(text) => Ok(text.clone()),
        Value::String(_) => Err(ApiError::field(key, value, "is too long")),
        _ => Err(ApiError::field(key, value, "is not of type 'string'")),
    }
}

pub(super) fn show(context: &Context<'_>, id: &str) -> Result<Reply, ApiError> {
    context.volume(id, |_, volume| Ok(Reply::json(200, &json!({"metadata": volume.metadata}))))
}

/// `POST` adds to what is there, `PUT` replaces it.
pub(super) fn set(context: &Context<'_>, id: &str, replace: bool) -> Result<Reply, ApiError> {
    let given = parse(&Value::Object(context.request.object("metadata")?))?;
    context.change_volume(id, |state, id| {
        let volume = volume_mut(state, id)?;
        if replace {
            volume.metadata.clear();
        }
        volume.metadata.extend(given);
        Ok(Reply::json(200, &json!({"metadata": volume.metadata})))
    })
}

pub(super) fn show_key(context: &Context<'_>, id: &str, key: &str) -> Result<Reply, ApiError> {
    context.volume(id, |_, volume| match volume.metadata.get(key) {
        Some(value) => Ok(meta(key, value)),
        None => Err(no_such_key(id, key)),
    })
}

pub(super) fn set_key(context: &Context<'_>, id: &str, key: &str) -> Result<Reply, ApiError> {
    let given = context.request.object("meta")?;
    let value = given.get(key).ok_or_else(|| ApiError::bad("Request body and URI mismatch"))?;
    if given.len() > 1 {
        return Err(ApiError::bad("Request body contains too many items"));
    }
    let value = text(key, value)?;
    context.change_volume(id, |state, id| {
        volume_mut(state, id)?.metadata.insert(key.to_owned(), value.clone());
        Ok(meta(key, &value))
    })
}

pub(super) fn delete_key(context: &Context<'_>, id: &str, key: &str) -> Result<Reply, ApiError> {
    context.change_volume(id, |state, uuid| {
        let removed = volume_mut(state, uuid)?.metadata.remove(key);
        removed.map(|_| Reply::empty(200)).ok_or_else(|| no_such_key(id, key))
    })
}

fn meta(key: &str, value: &str) -> Reply {
    let meta = Map::from_iter([(key.to_owned(), Value::from(value))]);
    Reply::json(200, &json!({"meta": meta}))
}

fn no_such_key(id: &str, key: &str) -> ApiError {
    ApiError::new(404, format!("Volume {id} has no metadata with key {key}."))
}
