//! Who this host is: initiator name, address, host name, host id → connector properties.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{HostError, Paths};
use crate::config::HostSettings;

/// Where open-iscsi keeps its data base: Debian's place below `/etc`, and Red Hat's.
const RED_HAT_ISCSI_DB: &str = "/var/lib/iscsi";
/// `InitiatorIFace` of a host that has no preference.
const DEFAULT_IFACE: &str = "default";
/// Namespace of host UUIDs. The machine-id itself is confidential (machine-id(5)), and Cinder shows
/// the UUID to everybody in the project.
const HOST_NAMESPACE: Uuid = Uuid::from_u128(0x6f1f_9c0e_5d0b_4d5e_9a55_2f3c_7a1d_08e4);

/// What Cinder must know of this host.
#[derive(Debug, Clone)]
pub struct HostIdentity {
    /// `InitiatorName`; `None` when open-iscsi is not set up (only `local` volumes work then).
    pub initiator: Option<String>,
    /// The connector's `ip`.
    pub ip: Option<IpAddr>,
    /// The connector's `host`: the same at connect and release, always.
    pub host: String,
    /// `HostUUID`, or a UUID derived from /etc/machine-id.
    pub uuid: Uuid,
    /// Interface record of open-iscsi to log in through, when `InitiatorIFace` names one.
    pub iscsi_iface: Option<String>,
}

impl HostIdentity {
    /// Reads it all. An `InitiatorIP` that no interface has, or an unknown `InitiatorIFace`, is
    /// reported by [`HostIdentity::warnings`], not here.
    pub fn discover(paths: &Paths, settings: &HostSettings) -> Result<Self, HostError> {
        let host = match &settings.connector_host {
            Some(host) => host.clone(),
            None => host_name()?,
        };
        let record = IfaceRecord::read(paths, &settings.initiator_iface)?;
        let initiator = match record.as_ref().and_then(|record| record.initiator.clone()) {
            Some(name) => Some(name),
            None => initiator_name(paths)?,
        };
        let uuid = match settings.host_uuid {
            Some(uuid) => uuid,
            None => derived_uuid(paths, &host)?,
        };
        let ip = settings.initiator_ip.or_else(|| address(&settings.initiator_iface, &record));
        let iscsi_iface = record.map(|_| settings.initiator_iface.clone());
        Ok(Self { initiator, ip, host, uuid, iscsi_iface })
    }

    /// The connector as Cinder takes it (`notes` of os-brick's get_connector_properties):
    /// `platform os_type ip host multipath:false initiator do_local_attach:false mountpoint mode`.
    /// What this host doesn't have is left out.
    pub fn connector(&self, mountpoint: &str, read_only: bool) -> Value {
        let mut connector = json!({
            "platform": std::env::consts::ARCH,
            "os_type": "linux",
            "host": self.host,
            "multipath": false,
            "do_local_attach": false,
            "mountpoint": mountpoint,
            "mode": if read_only { "ro" } else { "rw" },
        });
        if let Some(ip) = self.ip {
            connector["ip"] = ip.to_string().into();
        }
        if let Some(initiator) = &self.initiator {
            connector["initiator"] = initiator.as_str().into();
        }
        connector
    }

    /// What an operator should know: no initiator name, address not found, …
    pub fn warnings(&self, paths: &Paths, settings: &HostSettings) -> Vec<String> {
        let mut warnings = Vec::new();
        let file = initiator_file(paths);
        match &self.initiator {
            None => warnings.push(format!(
                "{} names no initiator: iSCSI volumes cannot be attached; install open-iscsi \
                 (iscsi-initiator-utils)",
                file.display()
            )),
            Some(name) if !["iqn.", "eui.", "naa."].iter().any(|kind| name.starts_with(kind)) => {
                warnings.push(format!(
                    "the initiator name {name:?} begins with none of iqn., eui., naa.: targets \
                     will refuse it"
                ));
            }
            Some(_) => {}
        }
        let addresses = addresses();
        match settings.initiator_ip {
            Some(ip) if !addresses.iter().any(|(_, address)| *address == ip) => {
                warnings.push(format!("InitiatorIP {ip} is on no network interface of this host"));
            }
            _ => {}
        }
        let iface = &settings.initiator_iface;
        let known = iface == DEFAULT_IFACE
            || self.iscsi_iface.is_some()
            || nix::net::if_::if_nametoindex(iface.as_str()).is_ok();
        if !known {
            warnings.push(format!(
                "InitiatorIFace {iface:?} is neither a network interface nor an interface record \
                 of open-iscsi (iscsiadm -m iface)"
            ));
        }
        if self.ip.is_none() {
            warnings.push(
                "no address of this host was found for Cinder; set InitiatorIP or InitiatorIFace"
                    .to_owned(),
            );
        }
        if settings.host_uuid.is_none() && machine_id(paths).ok().flatten().is_none() {
            warnings.push(format!(
                "{} is missing or empty: this host's UUID was made from its name; run \
                 systemd-machine-id-setup or set HostUUID",
                paths.etc.join("machine-id").display()
            ));
        }
        warnings
    }
}

fn initiator_file(paths: &Paths) -> PathBuf {
    paths.etc.join("iscsi/initiatorname.iscsi")
}

/// The file as text; `None` when it isn't there.
fn read_if_there(path: &Path) -> Result<Option<String>, HostError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(HostError::io("read", path, e)),
    }
}

/// `InitiatorName = iqn…`; the last one counts, as for iscsid.
fn initiator_name(paths: &Paths) -> Result<Option<String>, HostError> {
    let text = read_if_there(&initiator_file(paths))?;
    Ok(text.and_then(|text| {
        settings(&text)
            .filter(|(name, value)| *name == "InitiatorName" && !value.is_empty())
            .last()
            .map(|(_, value)| value.to_owned())
    }))
}

/// `name = value` lines; `#` begins a comment at the beginning of a line.
fn settings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim()))
}

/// What counts here of an interface record of open-iscsi.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct IfaceRecord {
    net_interface: Option<String>,
    address: Option<IpAddr>,
    initiator: Option<String>,
}

impl IfaceRecord {
    /// `None` when there is no record of that name. `default` and `iser` are names that open-iscsi
    /// knows without a record.
    fn read(paths: &Paths, name: &str) -> Result<Option<Self>, HostError> {
        let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if name == DEFAULT_IFACE || !plain {
            return Ok(None);
        }
        let bases = match &paths.iscsi_db {
            Some(base) => vec![base.clone()],
            None => vec![paths.etc.join("iscsi"), RED_HAT_ISCSI_DB.into()],
        };
        for base in bases {
            if let Some(text) = read_if_there(&base.join("ifaces").join(name))? {
                return Ok(Some(Self::parse(&text)));
            }
        }
        Ok(None)
    }

    fn parse(text: &str) -> Self {
        let value = |wanted: &str| {
            settings(text)
                .find(|(name, value)| {
                    *name == wanted && !matches!(*value, "" | "<empty>" | DEFAULT_IFACE)
                })
                .map(|(_, value)| value.to_owned())
        };
        Self {
            net_interface: value("iface.net_ifacename"),
            address: value("iface.ipaddress").and_then(|address| address.parse().ok()),
            initiator: value("iface.initiatorname"),
        }
    }
}

/// The address that the interface setting means.
fn address(iface: &str, record: &Option<IfaceRecord>) -> Option<IpAddr> {
    match record {
        Some(record) => record
            .address
            .or_else(|| first_global(&addresses(), record.net_interface.as_deref()?))
            .or_else(any_address),
        None if iface == DEFAULT_IFACE => any_address(),
        None => first_global(&addresses(), iface),
    }
}

/// The kernel's choice; on a storage network without a way out, the first address there is.
fn any_address() -> Option<IpAddr> {
    source_of_default_route()
        .or_else(|| addresses().into_iter().map(|(_, ip)| ip).find(|ip| is_global(*ip)))
}

/// The address that the kernel would send from to the world, IPv4 before IPv6. Connecting a UDP
/// socket looks up the route and sends nothing; the destinations are reserved for documentation
/// (RFC 5737, RFC 3849).
fn source_of_default_route() -> Option<IpAddr> {
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")].into_iter().find_map(
        |(local, remote)| {
            let socket = UdpSocket::bind(local).ok()?;
            socket.connect(remote).ok()?;
            Some(socket.local_addr().ok()?.ip()).filter(|ip| is_global(*ip))
        },
    )
}

/// Every address of every interface.
fn addresses() -> Vec<(String, IpAddr)> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            Some((interface.interface_name, ip))
        })
        .collect()
}

fn first_global(addresses: &[(String, IpAddr)], interface: &str) -> Option<IpAddr> {
    let mut global = addresses
        .iter()
        .filter(|(name, ip)| name == interface && is_global(*ip))
        .map(|(_, ip)| *ip);
    let first = global.next()?;
    Some(if first.is_ipv4() { first } else { global.find(IpAddr::is_ipv4).unwrap_or(first) })
}

/// One that another host can reach: not of this machine, not of the link. Private networks count.
fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

fn host_name() -> Result<String, HostError> {
    let name = nix::unistd::gethostname()
        .map_err(|e| HostError::io("ask the kernel for", "the host name", e.into()))?;
    Ok(name.to_string_lossy().into_owned())
}

fn machine_id(paths: &Paths) -> Result<Option<String>, HostError> {
    let text = read_if_there(&paths.etc.join("machine-id"))?;
    let id = text.map(|text| text.trim().to_owned());
    // "uninitialized" stands there in images that have not booted yet.
    Ok(id.filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())))
}

fn derived_uuid(paths: &Paths, host: &str) -> Result<Uuid, HostError> {
    let seed = machine_id(paths)?.unwrap_or_else(|| format!("host {host}"));
    Ok(Uuid::new_v5(&HOST_NAMESPACE, seed.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_settings() -> HostSettings {
        HostSettings {
            mount_point: "/var/lib/cinder/mount".into(),
            initiator_ip: None,
            initiator_iface: "default".into(),
            connector_host: Some("node-1".into()),
            host_uuid: None,
        }
    }

    fn etc(files: &[(&str, &str)]) -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let paths = Paths {
            etc: dir.path().into(),
            iscsi_db: Some(dir.path().join("iscsi")),
            ..Paths::default()
        };
        (dir, paths)
    }

    const INITIATOR: &str = "iscsi/initiatorname.iscsi";
    const MACHINE_ID: (&str, &str) = ("machine-id", "0123456789abcdef0123456789abcdef\n");

    #[test]
    fn the_initiator_name_is_found_between_comments_and_spaces() {
        for (text, name) in [
            ("InitiatorName=iqn.a:1\n", Some("iqn.a:1")),
            ("## comment\n#InitiatorName=iqn.no\n  InitiatorName = iqn.a:2 \n", Some("iqn.a:2")),
            ("GenerateName=yes\n", None),
            ("InitiatorName=\n", None),
            ("InitiatorAlias=x\nInitiatorName=iqn.a=b\n", Some("iqn.a=b")),
        ] {
            let (_dir, paths) = etc(&[(INITIATOR, text), MACHINE_ID]);
            let identity = HostIdentity::discover(&paths, &host_settings()).unwrap();
            assert_eq!(identity.initiator.as_deref(), name, "{text}");
        }
    }

    #[test]
    fn a_host_without_open_iscsi_has_no_initiator_and_is_warned() {
        let (_dir, paths) = etc(&[MACHINE_ID]);
        let identity = HostIdentity::discover(&paths, &host_settings()).unwrap();
        assert_eq!(identity.initiator, None);
        let warnings = identity.warnings(&paths, &host_settings()).join("\n");
        assert!(warnings.contains("open-iscsi"), "{warnings}");
        assert!(identity.connector("node-1:/x", false).get("initiator").is_none());
    }

    #[test]
    fn the_uuid_is_stable_and_does_not_show_the_machine_id() {
        let (_dir, paths) = etc(&[MACHINE_ID]);
        let first = HostIdentity::discover(&paths, &host_settings()).unwrap().uuid;
        assert_eq!(first, HostIdentity::discover(&paths, &host_settings()).unwrap().uuid);
        assert_eq!(first.get_version_num(), 5);
        assert!(!MACHINE_ID.1.contains(&first.simple().to_string()[..8]));

        let set = Uuid::from_u128(7);
        let settings = HostSettings { host_uuid: Some(set), ..host_settings() };
        assert_eq!(HostIdentity::discover(&paths, &settings).unwrap().uuid, set);
    }

    #[test]
    fn without_a_machine_id_the_name_serves_and_is_warned_about() {
        let (_dir, paths) = etc(&[("machine-id", "uninitialized\n")]);
        let identity = HostIdentity::discover(&paths, &host_settings()).unwrap();
        let warnings = identity.warnings(&paths, &host_settings()).join("\n");
        assert!(warnings.contains("HostUUID"), "{warnings}");
    }

    #[test]
    fn an_interface_record_gives_address_and_initiator_and_is_logged_in_through() {
        let record = "# BEGIN RECORD 2.1.8\niface.iscsi_ifacename = storage\n\
                      iface.ipaddress = 10.9.8.7\niface.net_ifacename = eth7\n\
                      iface.initiatorname = iqn.iface:1\n# END RECORD\n";
        let (_dir, paths) = etc(&[
            (INITIATOR, "InitiatorName=iqn.a:1\n"),
            MACHINE_ID,
            ("iscsi/ifaces/storage", record),
        ]);
        let settings = HostSettings { initiator_iface: "storage".into(), ..host_settings() };
        let identity = HostIdentity::discover(&paths, &settings).unwrap();
        assert_eq!(identity.iscsi_iface.as_deref(), Some("storage"));
        assert_eq!(identity.ip, "10.9.8.7".parse().ok());
        assert_eq!(identity.initiator.as_deref(), Some("iqn.iface:1"));

        let settings = HostSettings { initiator_iface: "../../machine-id".into(), ..settings };
        let identity = HostIdentity::discover(&paths, &settings).unwrap();
        assert_eq!(identity.iscsi_iface, None);
    }

    #[test]
    fn an_unset_value_of_a_record_is_none() {
        let record = IfaceRecord::parse("iface.net_ifacename = <empty>\niface.ipaddress = \n");
        assert_eq!(record, IfaceRecord::default());
    }

    #[test]
    fn the_first_global_address_is_taken_ipv4_before_ipv6() {
        let addresses = [
            ("eth0", "fe80::1"),
            ("eth0", "fd00::5"),
            ("eth0", "169.254.0.9"),
            ("eth0", "10.0.0.5"),
            ("eth0", "10.0.0.6"),
            ("lo", "127.0.0.1"),
            ("eth1", "fd00::7"),
        ]
        .map(|(name, ip)| (name.to_owned(), ip.parse().unwrap()));
        assert_eq!(first_global(&addresses, "eth0"), "10.0.0.5".parse().ok());
        assert_eq!(first_global(&addresses, "eth1"), "fd00::7".parse().ok());
        assert_eq!(first_global(&addresses, "lo"), None);
        assert_eq!(first_global(&addresses, "eth2"), None);
    }

    #[test]
    fn an_address_or_interface_that_is_not_here_is_warned_about() {
        let (_dir, paths) = etc(&[(INITIATOR, "InitiatorName=iqn.a:1\n"), MACHINE_ID]);
        let settings = HostSettings {
            initiator_ip: "192.0.2.77".parse().ok(),
            initiator_iface: "no-such-if".into(),
            ..host_settings()
        };
        let identity = HostIdentity::discover(&paths, &settings).unwrap();
        assert_eq!(identity.ip, settings.initiator_ip);
        let warnings = identity.warnings(&paths, &settings);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn the_connector_says_what_cinder_asks_for() {
        let identity = HostIdentity {
            initiator: Some("iqn.a:1".into()),
            ip: "10.0.0.5".parse().ok(),
            host: "node-1".into(),
            uuid: Uuid::nil(),
            iscsi_iface: None,
        };
        assert_eq!(
            identity.connector("node-1:/m", true),
            json!({
                "platform": std::env::consts::ARCH, "os_type": "linux", "ip": "10.0.0.5",
                "host": "node-1", "multipath": false, "initiator": "iqn.a:1",
                "do_local_attach": false, "mountpoint": "node-1:/m", "mode": "ro",
            })
        );
    }
}
