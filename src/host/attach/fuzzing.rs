//! See [`crate::fuzzing`].

use std::path::{Component, Path};

use serde_json::Value;
use uuid::Uuid;

use super::{Attacher, DeviceRecord, iscsi};
use crate::error_chain::Chain;
use crate::fuzzing::assert_readable;
use crate::host::identity::HostIdentity;
use crate::host::{Exec, Paths};

/// What Cinder says of the way to a volume, and what this host would do with it.
pub fn connection_info(data: &[u8]) {
    let Ok(answer) = serde_json::from_slice::<Value>(data) else { return };
    let Some(info) = crate::openstack::fuzzing::connection(&answer) else { return };
    let password = info.data.0.get("auth_password").and_then(Value::as_str).unwrap_or_default();
    let is_shown = |text: &str| {
        password.len() >= 16
            && text.contains(password)
            && answer.to_string().matches(password).count() == 1
    };
    assert!(!is_shown(&format!("{info:?}")), "the password is in Debug");
    let record = match attacher().plan(&info) {
        Ok(record) => record,
        Err(error) => {
            let error = Chain(&error).to_string();
            assert_readable(&error);
            return assert!(!is_shown(&error), "the password is in {error:?}");
        }
    };
    let encrypted = info.data.0.get("encrypted");
    assert!(matches!(encrypted, None | Some(Value::Null | Value::Bool(false))), "{encrypted:?}");
    let text = serde_json::to_string(&record).unwrap_or_default();
    assert!(!is_shown(&text), "the password is in the journal");
    assert_eq!(serde_json::from_str::<DeviceRecord>(&text).ok().as_ref(), Some(&record));
    match &record {
        DeviceRecord::Local(local) => {
            let mut parts = local.device_path.components();
            assert!(
                local.device_path.starts_with("/dev") && local.device_path != Path::new("/dev")
            );
            assert_eq!(parts.next(), Some(Component::RootDir));
            assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{record:?}");
        }
        DeviceRecord::Iscsi(record) => iscsi::fuzzing::login(&info, record),
    }
}

fn attacher() -> Attacher {
    let paths = Paths::default();
    let identity = HostIdentity {
        initiator: None,
        ip: None,
        host: "host".to_owned(),
        uuid: Uuid::nil(),
        iscsi_iface: None,
    };
    Attacher::new(paths.clone(), Exec::new(&paths), &identity)
}
