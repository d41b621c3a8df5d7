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
    /// It answered something that is not an answer.
    #[error("the daemon's answer makes no sense")]
    Nonsense(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// The operator did not confirm.
    #[error("that is not its id; nothing was done")]
    NotConfirmed,
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
        let mut out = io::stdout().lock();
        let whose = if operation == Operation::DeleteSnapshot { "snapshot's" } else { "volume's" };
        write!(out, "Type the {whose} id ({shown}) to go on: ")?;
        out.flush()?;
        let mut typed = String::new();
        io::stdin().lock().read_line(&mut typed)?;
        if typed.trim() != shown || shown.is_empty() {
            return Err(OperateError::NotConfirmed);
        }
        arguments.id = Some(shown.to_owned());
    }
    let done = ask_daemon(socket, operation, name, &arguments).await?;
    show(&done)?;
    writeln!(io::stdout(), "Done.")?;
    Ok(())
}

fn show(answer: &Value) -> io::Result<()> {
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
    let no_daemon =
        |source| OperateError::NoDaemon { socket: socket.display().to_string(), source };
    let nonsense = |error: hyper::Error| OperateError::Nonsense(error.into());
    let stream = UnixStream::connect(socket).await.map_err(no_daemon)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(nonsense)?;
    tokio::spawn(connection);
    let Arguments { id, size, snapshot } = arguments;
    let body = json!({ "Name": name, "ID": id, "Size": size, "Snapshot": snapshot }).to_string();
    let request = hyper::Request::post(operation.path())
        .header(hyper::header::HOST, "plugin")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| OperateError::Nonsense(error.into()))?;
    let answer = sender.send_request(request).await.map_err(nonsense)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(nonsense)?.to_bytes();
    let value: Value =
        serde_json::from_slice(&body).map_err(|error| OperateError::Nonsense(error.into()))?;
    match value["Err"].as_str() {
        Some(error) if !error.is_empty() || !status.is_success() => {
            Err(OperateError::Refused(error.to_owned()))
        }
        _ => Ok(value),
    }
}
