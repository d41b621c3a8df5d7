//! Reads the `data` of an `iscsi` connection_info. All of it is from the network: it becomes
//! file names, lines of a node record and arguments only after it was checked here.

use std::net::{IpAddr, SocketAddr};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::IscsiPath;
use crate::connection_info::{ConnectionData, ConnectionInfo};
use crate::host::HostError;

/// The port of a portal that names none (RFC 7143, section 13.8.1).
const DEFAULT_PORT: u16 = 3260;
/// Longest iSCSI name (RFC 7143, section 4.2.7.1).
const NAME_LIMIT: usize = 223;
/// A node record keeps a CHAP user or password in 256 bytes, with a final NUL.
const CHAP_LIMIT: usize = 255;

/// What a connection_info says.
#[derive(Debug)]
pub struct Connection {
    /// Every way to the volume, in Cinder's order.
    pub paths: Vec<IscsiPath>,
    /// Credentials for the login, when the target wants some.
    pub chap: Option<Chap>,
    /// The volume's id, where Cinder says it.
    pub volume_id: Option<String>,
}

/// Credentials of one-way CHAP.
#[derive(Debug)]
pub struct Chap {
    /// The user.
    pub username: SecretString,
    /// The password.
    pub password: SecretString,
}

/// Checks and reads a connection_info of type `iscsi`.
pub fn parse(info: &ConnectionInfo) -> Result<Connection, HostError> {
    let data = Data(&info.data);
    Ok(Connection {
        paths: data.paths()?,
        chap: data.chap()?,
        volume_id: data.text("volume_id")?.map(str::to_owned),
    })
}

struct Data<'a>(&'a ConnectionData);

impl Data<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&str>, HostError> {
        self.get(key).map(|value| as_text(key, value)).transpose()
    }

    fn list(&self, key: &str) -> Result<Option<&Vec<Value>>, HostError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(refused(key, "is not a list")),
        }
    }

    /// With several portals Cinder sends lists that belong together by position, otherwise (or
    /// besides) the first way alone.
    fn paths(&self) -> Result<Vec<IscsiPath>, HostError> {
        let flat = self.addressing()?;
        let single_lun = self.get("target_lun");
        let (Some(portals), Some(iqns)) = (self.list("target_portals")?, self.list("target_iqns")?)
        else {
            let required = |key| self.get(key).ok_or_else(|| refused(key, "is missing"));
            let path = path(
                required("target_portal")?,
                required("target_iqn")?,
                required("target_lun")?,
                flat,
            )?;
            return Ok(vec![path]);
        };
        let luns = self.list("target_luns")?;
        if iqns.len() != portals.len() || luns.is_some_and(|luns| luns.len() != portals.len()) {
            return Err(refused("target_portals", "has another length than its other lists"));
        }
        let mut paths = Vec::new();
        for (index, (portal, iqn)) in portals.iter().zip(iqns).enumerate() {
            let lun = luns.and_then(|luns| luns.get(index)).or(single_lun);
            let lun = lun.ok_or_else(|| refused("target_luns", "is missing"))?;
            let path = path(portal, iqn, lun, flat)?;
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    /// How the array numbers LUNs; the kernel must be asked by the encoded number.
    fn addressing(&self) -> Result<fn(u64) -> u64, HostError> {
        match self.text("addressing_mode")? {
            None => Ok(|lun| lun),
            Some("SAM2") => Ok(|lun| if lun < 256 { lun } else { lun.saturating_add(FLAT_SPACE) }),
            Some("SAM3-flat") => Ok(|lun| lun.saturating_add(FLAT_SPACE)),
            Some(_) => Err(refused("addressing_mode", "is neither SAM2 nor SAM3-flat")),
        }
    }

    fn chap(&self) -> Result<Option<Chap>, HostError> {
        let username = self.text("auth_username")?;
        let password = self.text("auth_password")?;
        match self.text("auth_method")? {
            Some(method) if method.eq_ignore_ascii_case("chap") => {}
            None if username.is_none() && password.is_none() => return Ok(None),
            Some(method) if method.eq_ignore_ascii_case("none") => return Ok(None),
            None => {}
            Some(_) => {
                return Err(HostError::Unsupported {
                    what: "the target wants an authentication other than CHAP (auth_method in \
                           Cinder's connection_info), which this driver does not have"
                        .to_owned(),
                });
            }
        }
        Ok(Some(Chap {
            username: secret("auth_username", username)?,
            password: secret("auth_password", password)?,
        }))
    }
}

/// Bits that mark the flat space addressing method of SAM-3 in a LUN's first two bytes.
const FLAT_SPACE: u64 = 0x4000;

fn path(
    portal_value: &Value,
    iqn: &Value,
    lun_value: &Value,
    flat: fn(u64) -> u64,
) -> Result<IscsiPath, HostError> {
    let name = as_text("target_iqn", iqn)?;
    if !is_iscsi_name(name) {
        return Err(refused("target_iqn", "is not an iSCSI name (iqn.…, eui.… or naa.…)"));
    }
    Ok(IscsiPath {
        portal: portal(as_text("target_portal", portal_value)?)?.to_string(),
        iqn: name.to_owned(),
        lun: flat(lun(lun_value)?),
        opened_session: false,
        wrote_node: false,
    })
}

/// Letters beyond RFC 7143's (capitals, `_`) occur and harm nothing; a `/` would.
fn is_iscsi_name(name: &str) -> bool {
    ["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix))
        && name.len() <= NAME_LIMIT
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:_".contains(&byte))
}

/// An address with a port. Host names are refused, as the kernel shows sessions by address only:
/// we would not find our own again.
fn portal(text: &str) -> Result<SocketAddr, HostError> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    text.parse()
        .or_else(|_| {
            let address = match bare {
                Some(inside) => inside.parse().map(IpAddr::V6),
                None => text.parse().map(IpAddr::V4),
            };
            address.map(|address| SocketAddr::new(address, DEFAULT_PORT))
        })
        .map_err(|_| {
            refused(
                "target_portal",
                "is not ADDRESS:PORT or [IPv6]:PORT (a host name there is \
                 `target_ip_address` in cinder.conf: it must be an address)",
            )
        })
}

/// Some drivers send the number as text.
fn lun(value: &Value) -> Result<u64, HostError> {
    match value {
        Value::Number(number) => number.as_u64(),
        // Not parse() alone: it takes a leading +.
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| refused("target_lun", "is not a number"))
}

fn as_text<'a>(key: &str, value: &'a Value) -> Result<&'a str, HostError> {
    let text = value.as_str().ok_or_else(|| refused(key, "is not text"))?;
    if text.chars().any(char::is_control) {
        return Err(refused(key, "has control characters"));
    }
    Ok(text)
}

/// A node record has one value on each line, without quotes: blanks around it are lost there.
fn secret(key: &str, text: Option<&str>) -> Result<SecretString, HostError> {
    let text = text.filter(|text| !text.is_empty()).ok_or_else(|| refused(key, "is missing"))?;
    if text.len() > CHAP_LIMIT {
        return Err(refused(key, "is longer than 255 bytes, the limit of open-iscsi"));
    }
    if text.trim() != text {
        return Err(refused(key, "begins or ends with a blank, which open-iscsi would drop"));
    }
    Ok(SecretString::from(text))
}

/// Never quotes the value: it may be a secret in the wrong place.
fn refused(key: &str, why: &str) -> HostError {
    HostError::Refused { what: format!("Cinder's connection_info is unusable: `{key}` {why}") }
}

impl Chap {
    /// The lines of a node record.
    pub(super) fn record_lines(&self) -> String {
        format!(
            "node.session.auth.authmethod = CHAP\nnode.session.auth.username = {}\n\
             node.session.auth.password = {}\n",
            self.username.expose_secret(),
            self.password.expose_secret()
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn info(data: Value) -> ConnectionInfo {
        let Value::Object(data) = data else { panic!("not an object") };
        ConnectionInfo { driver_volume_type: "iscsi".into(), data: ConnectionData(data) }
    }

    fn refusal(data: Value) -> String {
        parse(&info(data)).unwrap_err().to_string()
    }

    fn one(extra: &[(&str, Value)]) -> Value {
        let mut data = json!({
            "target_portal": "10.0.0.9:3260",
            "target_iqn": "iqn.2010-10.org.openstack:volume-1",
            "target_lun": 1,
        });
        for (key, value) in extra {
            data[*key] = value.clone();
        }
        data
    }

    #[test]
    fn a_single_target_with_chap_as_lvm_sends_it() {
        let connection = parse(&info(one(&[
            ("auth_method", json!("CHAP")),
            ("auth_username", json!("user")),
            ("auth_password", json!("pass # word")),
            ("discard", json!(false)),
        ])))
        .unwrap();
        assert_eq!(connection.paths.len(), 1);
        assert_eq!(connection.paths[0].portal, "10.0.0.9:3260");
        assert_eq!(connection.paths[0].lun, 1);
        assert!(!connection.paths[0].opened_session);
        assert!(connection.chap.unwrap().record_lines().ends_with(".password = pass # word\n"));
    }

    #[test]
    fn lists_belong_together_by_position_and_a_missing_lun_list_repeats_the_single() {
        let connection = parse(&info(one(&[
            ("target_portals", json!(["10.0.0.9:3260", "[fd00::1]:3261"])),
            ("target_iqns", json!(["iqn.a:1", "iqn.a:2"])),
            ("target_lun", json!("7")),
        ])))
        .unwrap();
        let seen: Vec<_> =
            connection.paths.iter().map(|p| (p.portal.as_str(), p.iqn.as_str(), p.lun)).collect();
        assert_eq!(seen, [("10.0.0.9:3260", "iqn.a:1", 7), ("[fd00::1]:3261", "iqn.a:2", 7)]);
    }

    #[test]
    fn lists_of_different_lengths_are_refused() {
        let text = refusal(one(&[
            ("target_portals", json!(["10.0.0.9:3260", "10.0.1.9:3260"])),
            ("target_iqns", json!(["iqn.a:1", "iqn.a:2"])),
            ("target_luns", json!([1])),
        ]));
        assert!(text.contains("target_portals"), "{text}");
    }

    #[test]
    fn portals_are_addresses_of_both_families_with_or_without_port() {
        for (text, expected) in [
            ("10.0.0.9:3261", "10.0.0.9:3261"),
            ("10.0.0.9", "10.0.0.9:3260"),
            ("[fd00::1]:3261", "[fd00::1]:3261"),
            ("[FD00:0::1]", "[fd00::1]:3260"),
        ] {
            assert_eq!(portal(text).unwrap().to_string(), expected);
        }
        for text in ["storage.example:3260", "fd00::1:3260", "", "10.0.0.9:", "../../etc:3260"] {
            assert!(portal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn luns_are_numbers_or_numbers_as_text() {
        assert_eq!(lun(&json!(0)).unwrap(), 0);
        assert_eq!(lun(&json!("12")).unwrap(), 12);
        for value in [json!(-1), json!(1.5), json!("+1"), json!("1 1"), json!(""), json!(null)] {
            assert!(lun(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn encoded_luns_follow_the_addressing_mode() {
        for (mode, lun, expected) in
            [("SAM2", 255, 255), ("SAM2", 256, 0x4100), ("SAM3-flat", 1, 0x4001)]
        {
            let data = one(&[("addressing_mode", json!(mode)), ("target_lun", json!(lun))]);
            assert_eq!(parse(&info(data)).unwrap().paths[0].lun, expected);
        }
    }

    #[test]
    fn names_that_could_be_paths_or_lines_are_refused() {
        for iqn in ["iqn.a/../../etc", "iqn.a\nnode.startup = automatic", "volume-1", "iqn.a b"] {
            let text = refusal(one(&[("target_iqn", json!(iqn))]));
            assert!(text.contains("target_iqn") && !text.contains("etc"), "{text}");
        }
        assert!(is_iscsi_name("eui.02004567A425678D"));
        assert!(is_iscsi_name("naa.52004567BA64678D"));
    }

    #[test]
    fn secrets_that_would_break_the_node_record_are_refused_without_being_shown() {
        for bad in ["hidden\nnode.startup = automatic", " hidden", &"hidden".repeat(50)] {
            let text = refusal(one(&[
                ("auth_method", json!("CHAP")),
                ("auth_username", json!("user")),
                ("auth_password", json!(bad)),
            ]));
            assert!(text.contains("auth_password") && !text.contains("hidden"), "{text}");
        }
    }

    #[test]
    fn an_unknown_auth_method_and_half_credentials_are_refused() {
        let text = refusal(one(&[("auth_method", json!("SRP"))]));
        assert!(text.contains("CHAP"), "{text}");
        let text = refusal(one(&[("auth_username", json!("user"))]));
        assert!(text.contains("auth_password"), "{text}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let connection = parse(&info(one(&[
            ("auth_method", json!("CHAP")),
            ("auth_username", json!("hidden-user")),
            ("auth_password", json!("hidden-word")),
        ])))
        .unwrap();
        assert!(!format!("{connection:?}").contains("hidden"));
    }

    proptest! {
        /// What passes can stand in a path and in a line of a node record.
        #[test]
        fn whatever_cinder_sends_is_refused_or_harmless(data in crate::arbitrary::object(&[
            "target_portal", "target_portals", "target_iqn", "target_iqns", "target_lun",
            "target_luns", "auth_method", "auth_username", "auth_password", "volume_id",
        ])) {
            let Ok(connection) = parse(&info(Value::Object(data))) else { return Ok(()) };
            prop_assert!(!connection.paths.is_empty());
            for path in &connection.paths {
                prop_assert!(!path.iqn.contains(['/', '\0', '\n', ' ']), "{:?}", path.iqn);
                prop_assert!(path.portal.parse::<SocketAddr>().is_ok(), "{:?}", path.portal);
            }
            if let Some(chap) = &connection.chap {
                prop_assert_eq!(chap.record_lines().lines().count(), 3);
            }
        }
    }
}
