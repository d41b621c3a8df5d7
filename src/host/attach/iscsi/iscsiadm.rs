//! The command lines of iscsiadm and what its exit codes mean: nothing else.
//!
//! No secret ever stands on a command line: CHAP goes into the node record
//! ([`super::node_record`]).

use std::time::Duration;

use crate::host::Cmd;

/// A login ends by itself after the record's timeout and retries; this is for an iscsiadm that
/// hangs (open-iscsi 2.1.10 does with `scan = manual`, though the session is there then).
const LOGIN_LIMIT: Duration = Duration::from_secs(30);
/// A logout of a session whose target is dead takes up to 15 s.
const LOGOUT_LIMIT: Duration = Duration::from_secs(25);

/// Logs in to one target through one portal, as its node record says.
pub fn login(iqn: &str, portal: &str, iface: Option<&str>) -> Cmd {
    let cmd = Cmd::new("iscsiadm", LOGIN_LIMIT).args(["-m", "node", "-T", iqn, "-p", portal]);
    match iface {
        Some(iface) => cmd.args(["-I", iface, "--login"]),
        None => cmd.arg("--login"),
    }
}

/// Logs out of exactly one session.
pub fn logout(session: u32) -> Cmd {
    Cmd::new("iscsiadm", LOGOUT_LIMIT)
        .args(["-m", "session", "-r"])
        .args([session.to_string()])
        .arg("--logout")
}

/// What to do after a login, by its exit code (iscsiadm(8), "EXIT STATUS").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is a session.
    LoggedIn,
    /// The way there does not work: another portal may.
    NextPortal,
    /// The target may not be exported yet: once more after a moment.
    OnceMore,
    /// iscsid does not run: start it.
    StartDaemon,
    /// It would fail again; worse, a repeated CHAP failure may lock the initiator out.
    GiveUp,
}

/// What an exit code of a login asks for.
pub fn verdict(code: Option<i32>) -> Verdict {
    match code {
        Some(0 | 15) => Verdict::LoggedIn,
        Some(6 | 19 | 29) => Verdict::OnceMore,
        Some(18 | 20) => Verdict::StartDaemon,
        Some(7 | 12 | 13 | 21 | 24) => Verdict::GiveUp,
        _ => Verdict::NextPortal,
    }
}

/// An exit code in words, with what an operator can do.
fn meaning(code: Option<i32>) -> &'static str {
    match code {
        None => "iscsiadm was killed",
        Some(0 | 15) => "iscsiadm says that there is a session, but the kernel shows none",
        Some(4 | 8) => {
            "the portal does not answer: check that this host can reach the storage network, and \
             that the target service runs"
        }
        Some(5) => "the target refused the login",
        Some(6) => "open-iscsi's data base is locked or damaged",
        Some(7) => "iscsiadm did not accept its arguments",
        Some(9) => "iscsid met an internal error; see its log",
        Some(11) => "the target did not answer the login in time",
        Some(12) => "the kernel's iSCSI transport is missing; try: modprobe iscsi_tcp",
        Some(13) => "iscsiadm must run as root",
        Some(18 | 20) => {
            "iscsid does not run and could not be started; try: systemctl enable --now iscsid.socket"
        }
        Some(19) => "the target does not know us or is not exported",
        Some(21) => {
            "iscsiadm does not find the node record that was written: its data base is elsewhere"
        }
        Some(24) => {
            "the target refused the CHAP user or password that Cinder gave; not tried again"
        }
        Some(28) => "the session is in use",
        Some(33) => "iscsid did not answer in time",
        Some(_) => "see iscsiadm(8) for the code",
    }
}

/// How a login ended, in words.
pub fn login_said(code: Option<i32>) -> String {
    with_code(meaning(code), code)
}

/// How a logout ended that left the session there, in words.
pub fn logout_said(code: Option<i32>) -> String {
    match code {
        // They mean that there is nothing to log out of.
        Some(0 | 15 | 21) => {
            with_code("iscsiadm says that the session is gone, but the kernel has it", code)
        }
        _ => with_code(meaning(code), code),
    }
}

fn with_code(meaning: &str, code: Option<i32>) -> String {
    match code {
        Some(code) => format!("{meaning} (exit {code})"),
        None => meaning.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_names_target_portal_and_interface_only() {
        let cmd = login("iqn.2010-10.org.openstack:volume-1", "[fd00::1]:3260", Some("san"));
        assert_eq!(
            cmd.to_string(),
            "iscsiadm -m node -T iqn.2010-10.org.openstack:volume-1 -p [fd00::1]:3260 -I san --login"
        );
        assert_eq!(logout(7).to_string(), "iscsiadm -m session -r 7 --logout");
    }

    #[test]
    fn refused_credentials_are_never_tried_again() {
        assert_eq!(verdict(Some(24)), Verdict::GiveUp);
        assert!(meaning(Some(24)).contains("CHAP"));
    }

    #[test]
    fn a_logout_that_left_its_session_is_not_told_as_a_login() {
        for code in [0, 21] {
            let said = logout_said(Some(code));
            assert!(said.contains("the kernel has it") && said.contains(&code.to_string()));
        }
        assert!(logout_said(Some(20)).contains("iscsid does not run"));
        assert_eq!(logout_said(None), "iscsiadm was killed");
    }

    #[test]
    fn exit_codes_ask_for_what_helps() {
        for (code, expected) in [
            (0, Verdict::LoggedIn),
            (15, Verdict::LoggedIn),
            (8, Verdict::NextPortal),
            (4, Verdict::NextPortal),
            (19, Verdict::OnceMore),
            (20, Verdict::StartDaemon),
            (12, Verdict::GiveUp),
            (255, Verdict::NextPortal),
        ] {
            assert_eq!(verdict(Some(code)), expected, "exit {code}");
        }
        assert_eq!(verdict(None), Verdict::NextPortal);
        assert!(meaning(Some(12)).contains("modprobe iscsi_tcp"));
        assert!(meaning(Some(20)).contains("iscsid"));
    }
}
