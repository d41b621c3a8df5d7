//! See [`crate::fuzzing`].

use std::path::{Component, Path};

use secrecy::ExposeSecret;

use super::file::ConfigFile;
use super::findings::Findings;
use super::{Settings, clouds, file, validated};
use crate::driver::{metadata, options};
use crate::fuzzing::assert_readable;

/// Keys of a password or the like, in both files.
const SECRETS: &[&str] = &["Password", "ApplicationCredentialSecret", "Token"];

/// A config file.
pub fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut findings = Findings::default();
    let file = match file::parse(text, &mut findings) {
        Ok(file) => file,
        Err(problem) => return assert_readable(&problem),
    };
    // It opens the files that these name.
    let lower = text.to_lowercase();
    if lower.contains("cert") || lower.contains("\"key") || text.contains('\\') {
        return;
    }
    let settings = validated(&file, &|_| None, None, &mut findings);
    let problems = conclude(findings, settings);
    for secret in SECRETS.iter().filter_map(|key| file.text(key)) {
        assert_kept(secret.0.expose_secret(), text, &problems);
    }
}

/// A clouds.yaml.
pub fn clouds_yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let entry = match clouds::first(text) {
        Ok(Some(entry)) => entry,
        Ok(None) => return,
        Err(error) => {
            // As a value, not as a key or the name of a cloud.
            return assert_kept("hunter2hunter2", text, &[error.to_string()]);
        }
    };
    let lower = text.to_lowercase();
    if lower.contains("cert") || lower.contains("key") || text.contains('\\') {
        return;
    }
    let mut findings = Findings::default();
    let settings = validated(&ConfigFile::default(), &|_| None, Some(&entry), &mut findings);
    let problems = conclude(findings, settings);
    for key in ["password", "application_credential_secret", "token"] {
        if let Some((secret, _)) = entry.get(key) {
            assert_kept(secret.expose_secret(), text, &problems);
        }
    }
}

/// Checks the settings, and answers everything that the operator is told.
fn conclude(findings: Findings, settings: Option<Settings>) -> Vec<String> {
    match findings.conclude(Path::new("config.json"), settings) {
        Ok((settings, warnings)) => {
            assert_sound(&settings);
            warnings.iter().map(ToString::to_string).collect()
        }
        Err(errors) => {
            assert!(!errors.problems().is_empty(), "refused without a reason");
            errors.problems().to_vec()
        }
    }
}

/// A secret that is nowhere else in the text is in no message.
fn assert_kept(secret: &str, text: &str, messages: &[String]) {
    for message in messages {
        assert_readable(message);
        let shown = secret.len() >= 8
            && text.matches(secret).count() == 1
            && message.contains(secret)
            // A word of our own sentences.
            && !secret.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b' ');
        assert!(!shown, "{secret:?} is shown in {message:?}");
    }
}

fn assert_sound(settings: &Settings) {
    let Settings { host, driver, cloud, .. } = settings;
    for path in [&host.mount_point, &driver.state_dir] {
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        assert!(path.is_absolute() && path.components().all(plain), "{}", path.display());
        assert!(path.parent().is_some(), "{}", path.display());
    }
    assert!(!driver.state_dir.starts_with(&host.mount_point), "the journal among the volumes");
    let content: Vec<_> = Path::new(&driver.content_directory).components().collect();
    assert!(matches!(*content, [] | [Component::Normal(_)]), "{:?}", driver.content_directory);
    assert!(driver.wait_for_release.as_secs() <= 90 && driver.failover.lease.as_secs() >= 10);
    assert!((1..=u64::from(i32::MAX.unsigned_abs())).contains(&driver.default_size));
    for profile in &driver.profiles {
        assert!((1..=64).contains(&profile.name.len()), "{profile:?}");
        let Some(fs) = metadata::fs_type(&driver.default_filesystem) else {
            unreachable!("{:?}", driver.default_filesystem)
        };
        let alone = !profile.names.is_empty();
        let problems = options::problems_of_profile(&profile.options, alone, fs);
        assert!(problems.is_empty(), "{problems:?}");
        // Whether it is or not: it must not take forever.
        profile.is_for(&"a".repeat(255));
    }
    assert!(driver.cluster.as_ref().is_none_or(|id| (1..=64).contains(&id.len())));
    assert!(cloud.endpoint.to_ascii_lowercase().contains("http"), "{:?}", cloud.endpoint);
    assert!(matches!(&*cloud.interface, "public" | "internal" | "admin"));
}
