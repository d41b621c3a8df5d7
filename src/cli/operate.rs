//! What an operator asks of the running daemon. What destroys something (`release`, `format`, …) is
//! shown first, and done when the id is typed; `resize` and `snapshot` are done at once.

use std::io::{self, BufRead, Write};
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::progress::while_waiting;
use crate::docker::{Arguments, Operation};

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The daemon cannot be asked.
    #[error(
        "the daemon does not answer at {socket}; start it (\"systemctl start \
         cinder-docker-driver\") and try again"
    )]
    NoDaemon {
        /// Its socket.
        socket: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket is for root and its group.
    #[error("{socket} is for root and its group only: run this command as root")]
    NotAllowed {
        /// The socket.
        socket: String,
    },
    /// It answered something that is not an answer.
    #[error("the daemon's answer makes no sense")]
    Nonsense(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// The operator did not confirm.
    #[error("that is not its id; nothing was done")]
    NotConfirmed,
    /// As before, of a host.
    #[error("that is not the host's name; nothing was done")]
    HostNotConfirmed,
    /// Some volumes were released, and others not.
    #[error("{failed} of {all} volumes were not released: see above")]
    NotAll {
        /// How many were not.
        failed: usize,
        /// How many there are.
        all: usize,
    },
    /// Neither the daemon nor the cloud can be asked.
    #[error("cannot ask the cloud: {0}")]
    Cloud(String),
    /// The terminal.
    #[error("cannot ask")]
    Terminal(#[from] io::Error),
}

/// Carries an operator's command out; with an id in its arguments it is confirmed already.
pub async fn operate(
    socket: &Path,
    operation: Operation,
    name: &str,
    mut arguments: Arguments,
) -> Result<(), OperateError> {
    if operation.is_confirmed() && arguments.id.is_none() {
        let plan = ask_daemon(socket, operation, name, &arguments).await?;
        let shown = plan["ID"].as_str().unwrap_or_default();
        show(&plan)?;
        let whose = if operation == Operation::DeleteSnapshot { "snapshot's" } else { "volume's" };
        if !is_typed(&format!("Type the {whose} id ({shown}) to go on: "), shown)? {
            return Err(OperateError::NotConfirmed);
        }
        arguments.id = Some(shown.to_owned());
    }
    let done = ask_daemon(socket, operation, name, &arguments).await?;
    show(&done)?;
    writeln!(io::stdout(), "Done.")?;
    Ok(())
}

/// Asks, and says whether the answer is what has to be typed.
pub(super) fn is_typed(prompt: &str, wanted: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    write!(out, "{prompt}")?;
    out.flush()?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    Ok(typed.trim() == wanted && !wanted.is_empty())
}

pub(super) fn show(answer: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for sentence in answer["Says"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        writeln!(out, "- {sentence}")?;
    }
    Ok(())
}

async fn ask_daemon(
    socket: &Path,
    operation: Operation,
    name: &str,
    arguments: &Arguments,
) -> Result<Value, OperateError> {
    let Arguments { id, size, snapshot } = arguments;
    let what = match id {
        None if operation.is_confirmed() => format!("looking at {name}"),
        _ => format!("the daemon works on {name}"),
    };
    let body = json!({ "Name": name, "ID": id, "Size": size, "Snapshot": snapshot });
    while_waiting(&what, post(socket, operation.path(), &body)).await
}

/// Asks the daemon; an error that it answers is [`OperateError::Refused`].
pub(super) async fn post(socket: &Path, path: &str, body: &Value) -> Result<Value, OperateError> {
    let (status, value) = exchange(socket, "POST", path, Some(body)).await?;
    match value["Err"].as_str() {
        Some(error) if !error.is_empty() || status >= 300 => {
            Err(OperateError::Refused(error.to_owned()))
        }
        _ => Ok(value),
    }
}

/// One HTTP exchange on a Unix socket: the status, and the JSON that came.
pub(super) async fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value), OperateError> {
    let shown = || socket.display().to_string();
    let nonsense = |error: hyper::Error| OperateError::Nonsense(error.into());
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => OperateError::NotAllowed { socket: shown() },
        _ => OperateError::NoDaemon { socket: shown(), source },
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(nonsense)?;
    tokio::spawn(connection);
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "plugin")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| OperateError::Nonsense(error.into()))?;
    let answer = sender.send_request(request).await.map_err(nonsense)?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.map_err(nonsense)?.to_bytes();
    let value =
        serde_json::from_slice(&body).map_err(|error| OperateError::Nonsense(error.into()))?;
    Ok((status, value))
}
