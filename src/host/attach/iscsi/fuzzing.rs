//! See [`crate::fuzzing`].

use std::path::Path;

use secrecy::ExposeSecret;

use super::node_record::{DEFAULT_IFACE, MARK, Owner, address_of, file_name, owner_of, text};
use super::{IscsiRecord, connection};
use crate::connection_info::ConnectionInfo;

/// Keys of a node record, in their order; the credentials only where there are some.
const KEYS: &[&str] = &[
    "node.name",
    "node.tpgt",
    "node.startup",
    "iface.iscsi_ifacename",
    "iface.transport_name",
    "node.discovery_type",
    "node.session.scan",
    "node.session.auth.authmethod",
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.initial_login_retry_max",
    "node.session.timeo.replacement_timeout",
    "node.conn[0].timeo.login_timeout",
    "node.conn[0].address",
    "node.conn[0].port",
    "node.conn[0].startup",
];

/// The node records of a login: one file below `nodes` each, with the lines that belong there.
pub fn login(info: &ConnectionInfo, record: &IscsiRecord) {
    let Ok(connection) = connection::parse(info) else { unreachable!("planned, but not") };
    assert!(!record.paths.is_empty() && record.paths == connection.paths);
    let chap = connection.chap.as_ref();
    for path in &connection.paths {
        let Ok(portal) = address_of(path) else { unreachable!("{path:?}") };
        for name in [&path.iqn, &file_name(portal)] {
            assert_eq!(Path::new("nodes").join(name).parent(), Some(Path::new("nodes")));
            assert!(!name.contains(['/', '\0']) && !name.starts_with('.'), "{name:?}");
        }
        let record = text(path, portal, chap, DEFAULT_IFACE, "boot-1");
        assert_eq!(owner_of(&record), Owner::Us("boot-1".to_owned()));
        let fields: Vec<_> = record.lines().skip(1).map(|line| line.split_once(" = ")).collect();
        let keys: Vec<_> = fields.iter().flatten().map(|(key, _)| *key).collect();
        let has_credentials = |key: &str| key.ends_with("username") || key.ends_with("password");
        let wanted = KEYS.iter().copied().filter(|key| chap.is_some() || !has_credentials(key));
        assert_eq!(keys, wanted.collect::<Vec<_>>());
        assert_eq!(fields.len(), keys.len(), "a line that is none");
        let value = |wanted: &str| {
            fields.iter().flatten().find(|(key, _)| *key == wanted).map(|(_, value)| *value)
        };
        assert_eq!(value("node.startup"), Some("manual"));
        assert_eq!(value("node.name"), Some(&*path.iqn));
        let secret = chap.map(|chap| chap.password.expose_secret());
        assert_eq!(value("node.session.auth.password"), secret);
    }
}

/// A node record of whoever made it.
pub fn node_record(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match owner_of(text) {
        Owner::Nobody => unreachable!("a record is somebody's"),
        Owner::Us(boot_id) => {
            assert!(text.starts_with(MARK));
            assert!(!boot_id.contains(char::is_control), "{boot_id:?}");
        }
        Owner::Other { automatic } => {
            assert!(!text.starts_with(MARK));
            // What open-iscsi takes: the last line of a key.
            let mut said = false;
            for line in text.lines() {
                if let Some((key, value)) = line.split_once('=')
                    && key.trim() == "node.startup"
                {
                    said = matches!(value.trim(), "automatic" | "onboot");
                }
            }
            assert_eq!(automatic, said);
        }
    }
}
