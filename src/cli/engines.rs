//! The names of containers, from the engines of this host. They are for people: an engine that does
//! not answer at once costs a second and nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::operate::exchange;

/// How long an engine may take.
const LIMIT: Duration = Duration::from_secs(1);
/// Where Docker and Podman listen.
const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];

/// The names of running containers by their ids.
///
/// Only for who has seen a container: a socket of systemd would start its engine.
pub(super) async fn names() -> BTreeMap<String, String> {
    let chosen = std::env::var("DOCKER_HOST").ok();
    let chosen = chosen.as_deref().and_then(|host| host.strip_prefix("unix://"));
    let sockets = chosen.into_iter().chain(SOCKETS).map(PathBuf::from);
    let mut names = BTreeMap::new();
    for socket in sockets {
        if let Ok(Some(containers)) = timeout(LIMIT, containers(&socket)).await {
            names.extend(containers.iter().filter_map(name));
        }
    }
    names
}

async fn containers(socket: &Path) -> Option<Vec<Value>> {
    let (status, answer) = exchange(socket, "GET", "/containers/json", None).await.ok()?;
    let Value::Array(containers) = answer else { return None };
    (status == 200).then_some(containers)
}

fn name(container: &Value) -> Option<(String, String)> {
    let name = container["Names"][0].as_str()?.trim_start_matches('/');
    Some((container["Id"].as_str()?.to_owned(), name.to_owned()))
}
