//! An entry of clouds.yaml, with its secure.yaml, found where openstacksdk finds them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::Environment;
use super::file::{self, ConfigFile};
use super::findings::{Findings, Origin};
use super::places::Field;

/// One cloud: what its entry and the `auth` block in it say, under the same names.
#[derive(Debug)]
pub(super) struct CloudEntry {
    values: BTreeMap<&'static str, SecretString>,
    place: String,
}

impl CloudEntry {
    /// Which cloud of which file.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The value of a key and where it is from.
    pub fn get(&self, key: &str) -> Option<(&SecretString, Origin)> {
        let value = self.values.get(key)?;
        Some((value, Origin { place: self.place.clone(), name: key.to_owned() }))
    }
}

/// Reads the entry that `Cloud` or `OS_CLOUD` names; `None` when neither does. The error is a
/// sentence for the operator.
pub(super) fn read(
    config: &ConfigFile,
    env: Environment<'_>,
    findings: &mut Findings,
) -> Result<Option<CloudEntry>, String> {
    let variable = |name| env(name).filter(|value| !value.is_empty());
    let named = |key, name| {
        let written = config.text(key).map(|(text, _)| text.expose_secret().trim().to_owned());
        written.filter(|text| !text.is_empty()).or_else(|| variable(name))
    };
    let Some(name) = named("Cloud", "OS_CLOUD") else { return Ok(None) };
    let directories = search_directories(env);
    let candidates = match named("CloudsFile", "OS_CLIENT_CONFIG_FILE") {
        Some(path) => vec![PathBuf::from(path)],
        None => files_in(&directories, "clouds"),
    };
    let Some((path, mut clouds)) = read_first(&candidates, findings)? else {
        let searched: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        let searched = searched.join(", nor ");
        return Err(format!("the cloud {name:?} is to be used, but there is no {searched}"));
    };
    let Some(Values(mut values)) = clouds.remove(&name) else {
        let known: Vec<_> = clouds.keys().map(|name| format!("{name:?}")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(format!("{} has no cloud {name:?}; it has: {known}", path.display()));
    };

    // Secrets may stand apart: what secure.yaml says about this cloud wins.
    let candidates = match variable("OS_CLIENT_SECURE_FILE") {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let beside = path.parent().map(Path::to_owned);
            files_in(&beside.into_iter().chain(directories).collect::<Vec<_>>(), "secure")
        }
    };
    if let Some((_, mut secure)) = read_first(&candidates, findings)? {
        values.extend(secure.remove(&name).unwrap_or_default().0);
    }
    let place = format!("cloud {name:?} in {}", path.display());
    if values.contains_key("profile") && !values.contains_key("auth_url") {
        findings.warn(format!(
            "{place}: vendor profiles are not known here, write auth_url and region_name out"
        ));
    }
    Ok(Some(CloudEntry { values, place }))
}

/// The working directory, the user's and the system's configuration, in this order.
fn search_directories(env: Environment<'_>) -> Vec<PathBuf> {
    let variable = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    std::iter::once(PathBuf::from("."))
        .chain(user.map(|directory| directory.join("openstack")))
        .chain([PathBuf::from("/etc/openstack")])
        .collect()
}

fn files_in(directories: &[PathBuf], stem: &str) -> Vec<PathBuf> {
    let both =
        |directory: &PathBuf| ["yaml", "yml"].map(|end| directory.join(stem).with_extension(end));
    directories.iter().flat_map(both).collect()
}

type Clouds = BTreeMap<String, Values>;

/// Reads the first of these files that exists.
fn read_first(
    candidates: &[PathBuf],
    findings: &mut Findings,
) -> Result<Option<(PathBuf, Clouds)>, String> {
    for path in candidates {
        let (text, mode) = match file::read_text(path) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let clouds = parse(text.expose_secret())
            .map_err(|error| format!("{} is not a list of clouds: {error}", path.display()))?;
        if clouds.values().any(Values::hold_a_secret) {
            file::warn_if_public(path, mode, findings);
        }
        return Ok(Some((path.clone(), clouds)));
    }
    Ok(None)
}

fn parse(text: &str) -> Result<Clouds, serde_saphyr::Error> {
    #[derive(serde::Deserialize)]
    struct CloudsFile {
        #[serde(default)]
        clouds: Clouds,
    }
    // Without the snippet: it would show the lines around, and a password among them.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options::<CloudsFile>(text, options).map(|file| file.clouds)
}

/// The first cloud of a text.
#[cfg(any(test, fuzzing))]
pub(super) fn first(text: &str) -> Result<Option<CloudEntry>, serde_saphyr::Error> {
    let first = parse(text)?.into_values().next();
    Ok(first.map(|Values(values)| CloudEntry { values, place: "cloud \"c\"".to_owned() }))
}

/// The scalars of a cloud that we know by name. The others may be anything and are passed over.
#[derive(Debug, Default)]
struct Values(BTreeMap<&'static str, SecretString>);

impl Values {
    fn hold_a_secret(&self) -> bool {
        ["password", "token", "application_credential_secret"]
            .iter()
            .any(|key| self.0.contains_key(key))
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Values;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("keys and values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
                let mut values = Values::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "auth" {
                        let auth: Option<Values> = map.next_value()?;
                        values.0.extend(auth.unwrap_or_default().0);
                    } else if let Some(key) = Field::cloud_keys().find(|known| *known == key) {
                        // As a string, so that an id of digits keeps its zeros.
                        if let Some(text) = map.next_value::<Option<String>>()? {
                            values.0.insert(key, text.into());
                        }
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(values)
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> BTreeMap<&'static str, String> {
        let mut clouds = parse(text).unwrap();
        let values = clouds.remove("c").unwrap().0;
        values.into_iter().map(|(key, value)| (key, value.expose_secret().to_owned())).collect()
    }

    #[test]
    fn ids_and_passwords_that_look_like_numbers_keep_their_text() {
        let found = values(
            "clouds: {c: {auth: {password: 0123, project_id: 83808667817e4102, username: yes}}}",
        );
        assert_eq!(found["password"], "0123");
        assert_eq!(found["project_id"], "83808667817e4102");
        assert_eq!(found["username"], "yes");
    }

    #[test]
    fn what_is_unknown_may_be_anything() {
        let found = values(
            "clouds:\n  other: {auth: {auth_methods: [a, b]}}\n  c:\n    verify: false\n    \
             networks: [{name: n}]\n    auth:\n      auth_url: http://k\n      password: null\n\
             cache: {x: 1}\n",
        );
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["auth_url", "verify"]);
    }

    #[test]
    fn errors_of_yaml_show_no_values() {
        for text in [
            "clouds:\n  c:\n    auth:\n      password: 'hunter2\n",
            "clouds:\n  c:\n    auth: hunter2\n",
            "clouds: hunter2\n",
            "clouds:\n  c:\n    auth:\n      password: [hunter2]\n",
            "clouds:\n  c:\n    auth:\n      password: *hunter2\n",
            "clouds:\n  c:\n   auth:\n      password: hunter2: x\n\t- hunter2",
            "clouds:\n  c:\n    password: hunter2\n    password: hunter2\n",
        ] {
            let error = parse(text).unwrap_err().to_string();
            println!("{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_search_goes_from_the_working_directory_to_the_system() {
        let home = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let found = search_directories(&home);
        assert_eq!(found, [".", "/root/.config/openstack", "/etc/openstack"].map(PathBuf::from));
    }
}
