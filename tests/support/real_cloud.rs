//! The real cloud that the tests may use: `CINDER_TEST_ENDPOINT` (Keystone's address),
//! `CINDER_TEST_USERNAME`, `CINDER_TEST_PASSWORD` and `CINDER_TEST_PROJECT` (a name);
//! `CINDER_TEST_REGION` and `CINDER_TEST_DOMAIN` are optional.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use std::env;
use std::io::Write;

/// Where it is and who we are there.
#[derive(Debug, Clone)]
pub struct RealCloud {
    pub endpoint: String,
    pub username: String,
    pub password: String,
    pub project: String,
    pub region: String,
    pub domain: String,
}

/// The cloud of the environment. Where none is named, the test has nothing to look at: that is a
/// failure where everything must run (`CINDER_RIG=1`), and said aloud elsewhere.
pub fn real_cloud() -> Option<RealCloud> {
    let var = |name: &str| env::var(format!("CINDER_TEST_{name}")).ok();
    let Some(endpoint) = var("ENDPOINT") else {
        let why = "CINDER_TEST_ENDPOINT is not set, nothing was tested against a real cloud";
        assert!(env::var("CINDER_RIG").as_deref() != Ok("1"), "{why}");
        // Not eprintln: the harness would swallow it, as this test passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
        return None;
    };
    Some(RealCloud {
        endpoint,
        username: var("USERNAME").expect("CINDER_TEST_USERNAME"),
        password: var("PASSWORD").expect("CINDER_TEST_PASSWORD"),
        project: var("PROJECT").expect("CINDER_TEST_PROJECT"),
        region: var("REGION").unwrap_or_default(),
        domain: var("DOMAIN").unwrap_or_else(|| "Default".to_owned()),
    })
}
