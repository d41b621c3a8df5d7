//! A request, read whole, and an answer, before HTTP gets it; errors in OpenStack's form.

use bytes::Bytes;
use hyper::{HeaderMap, Method};
use serde_json::{Map, Value, json};

/// A request, its body read.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// `http://HOST:PORT` as the client knows us; links and catalog URLs begin with it.
    pub(super) base: String,
}

impl Request {
    /// The parts of the path between its slashes.
    pub(super) fn segments(&self) -> Vec<&str> {
        self.path.split('/').filter(|part| !part.is_empty()).collect()
    }

    /// A header, when it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// A query parameter; the first of its name.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body, which must be a JSON object.
    pub(super) fn json(&self) -> Result<Map<String, Value>, ApiError> {
        serde_json::from_slice(&self.body).map_err(|_| ApiError::bad("Malformed request body"))
    }

    /// The object under `key` in the body.
    pub(super) fn object(&self, key: &str) -> Result<Map<String, Value>, ApiError> {
        match self.json()?.remove(key) {
            Some(Value::Object(object)) => Ok(object),
            Some(other) => Err(ApiError::field(key, &other, "is not of type 'object'")),
            None => Err(ApiError::field("None", &Value::Null, &required(key))),
        }
    }
}

/// What JSON schema says of a missing property.
pub(super) fn required(key: &str) -> String {
    format!("'{key}' is a required property")
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", "application/json".into())],
            body: Bytes::from(body.to_string()),
        }
    }

    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", "text/plain; charset=utf-8".into())],
            body: Bytes::from(body.into()),
        }
    }

    /// No body. Cinder names a content type all the same.
    pub(super) fn empty(status: u16) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", "application/json".into())],
            body: Bytes::new(),
        }
    }

    #[must_use]
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// An error that the API answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: u16,
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 400, Cinder's `InvalidVolume`.
    pub(super) fn invalid_volume(reason: impl AsRef<str>) -> Self {
        Self::bad(format!("Invalid volume: {}", reason.as_ref()))
    }

    /// 400, Cinder's `InvalidInput`.
    pub(super) fn invalid_input(reason: impl AsRef<str>) -> Self {
        Self::bad(format!("Invalid input received: {}", reason.as_ref()))
    }

    /// 400 as JSON schema says it.
    pub(super) fn field(name: &str, value: &Value, problem: &str) -> Self {
        let (shown, quoted) = match value {
            Value::String(text) => (text.clone(), format!("'{text}' ")),
            Value::Null => ("None".to_owned(), String::new()),
            other => (other.to_string(), format!("{other} ")),
        };
        let quoted = if problem.ends_with("property") { "" } else { &quoted };
        Self::bad(format!(
            "Invalid input for field/attribute {name}. Value: {shown}. {quoted}{problem}"
        ))
    }

    /// 404 `WHAT ID could not be found.`
    pub(super) fn not_found(what: &str, id: impl std::fmt::Display) -> Self {
        Self::new(404, format!("{what} {id} could not be found."))
    }

    /// 404 for a path that leads nowhere.
    pub(super) fn no_such_path() -> Self {
        Self::new(404, "The resource could not be found.")
    }

    /// 500 as Cinder says it when it does not tell why.
    pub(super) fn internal() -> Self {
        Self::new(
            500,
            "The server has either erred or is incapable of performing the requested operation.",
        )
    }

    /// Cinder's form: the kind of error is the only key.
    pub(super) fn reply(&self) -> Reply {
        let kind = match self.status {
            400 => "badRequest",
            403 => "forbidden",
            404 => "itemNotFound",
            405 => "badMethod",
            409 => "conflictingRequest",
            413 => "overLimit",
            _ => "computeFault",
        };
        let mut error = json!({"code": self.status, "message": self.message});
        if self.status == 413 {
            error["retryAfter"] = "0".into();
        }
        let reply = Reply::json(self.status, &json!({ kind: error }));
        if self.status == 413 { reply.header("Retry-After", "0") } else { reply }
    }
}
