//! Addresses as people and catalogs write them.

use url::Url;

use super::http::Microversion;
use super::{CloudError, CloudErrorKind};
use crate::shown::shown;

/// Versions of the identity API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdentityVersion {
    V2,
    V3,
}

impl IdentityVersion {
    /// The path segment.
    pub(super) fn segment(self) -> &'static str {
        match self {
            Self::V2 => "v2.0",
            Self::V3 => "v3",
        }
    }

    fn of(segment: &str) -> Option<Self> {
        match segment {
            "v2.0" | "v2" => Some(Self::V2),
            _ if segment == "v3" || segment.starts_with("v3.") => Some(Self::V3),
            _ => None,
        }
    }
}

/// Keystone's address: `http://h:5000`, `http://h/identity/v3`, `http://h:5000/v2.0/tokens`, …
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdentityEndpoint {
    /// Without a version, without a trailing slash in the path (but for the bare host).
    base: Url,
    /// `None` = to be discovered.
    pub(super) version: Option<IdentityVersion>,
}

impl IdentityEndpoint {
    pub(super) fn parse(written: &str) -> Result<Self, CloudError> {
        let mut base = parse(written, "Endpoint")?;
        let mut segments = segments(&base);
        // The address of the call itself, as some documents show it.
        if segments.last().is_some_and(|last| last == "tokens") {
            segments.pop();
            if segments.last().is_some_and(|last| last == "auth") {
                segments.pop();
            }
        }
        let version = segments.last().and_then(|last| IdentityVersion::of(last));
        if version.is_some() {
            segments.pop();
        }
        base.set_path(&segments.join("/"));
        Ok(Self { base, version })
    }

    /// Where the versions are listed.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// Root of one version. Made of the address that the operator gave, never of the links in
    /// Keystone's version document: behind a proxy those often name another scheme or host.
    pub(super) fn versioned(&self, version: IdentityVersion) -> Url {
        below(&self.base, version.segment())
    }

    /// The versions in a document of the identity root, the best first.
    ///
    /// `{"versions": {"values": [{"id": "v3.14"}, {"id": "v2.0"}]}}`
    pub(super) fn best_version(document: &serde_json::Value) -> Option<IdentityVersion> {
        let listed = document["versions"]["values"].as_array()?;
        let found: Vec<_> = listed
            .iter()
            .filter_map(|version| IdentityVersion::of(version["id"].as_str()?))
            .collect();
        [IdentityVersion::V3, IdentityVersion::V2].into_iter().find(|wanted| found.contains(wanted))
    }
}

/// Major versions of the block storage API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockStorageVersion {
    V2,
    V3,
}

/// Cinder's address, such as `http://h:8776/v3/PROJECT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockStorageEndpoint {
    /// With version and project: every call is below it.
    pub(super) url: Url,
    pub(super) version: BlockStorageVersion,
}

/// What a catalog's or operator's address says of its version.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BlockStorageAddress {
    Complete(BlockStorageEndpoint),
    /// No version in it: its root document tells.
    Unversioned(Url),
}

impl BlockStorageAddress {
    /// Takes the address with or without version, project id and trailing slash. The project is
    /// always put in: Cinder before 3.67 needs it, later ones take it.
    pub(super) fn parse(written: &str, project_id: &str) -> Result<Self, CloudError> {
        let mut url = parse(written, "the block storage endpoint")?;
        let mut segments = segments(&url);
        if segments.last().is_some_and(|last| last == project_id) {
            segments.pop();
        }
        let version = match segments.last().map(String::as_str) {
            Some("v3") => BlockStorageVersion::V3,
            Some("v2") => BlockStorageVersion::V2,
            Some("v1") => {
                return Err(CloudError::new(
                    CloudErrorKind::Catalog,
                    format!(
                        "{} is version 1 of the block storage API; 2 or 3 is needed",
                        shown(written)
                    ),
                ));
            }
            Some(last) if segments.iter().any(|part| part == "v2" || part == "v3") => {
                return Err(CloudError::new(
                    CloudErrorKind::Catalog,
                    format!(
                        "the block storage endpoint {} ends in \"{}\", but the project of the \
                         token is \"{project_id}\"",
                        shown(written),
                        shown(last)
                    ),
                ));
            }
            _ => {
                url.set_path(&segments.join("/"));
                return Ok(Self::Unversioned(url));
            }
        };
        segments.push(project_id.to_owned());
        url.set_path(&segments.join("/"));
        Ok(Self::Complete(BlockStorageEndpoint { url, version }))
    }
}

impl BlockStorageEndpoint {
    /// The endpoint below an unversioned root.
    pub(super) fn below_root(root: &Url, version: BlockStorageVersion, project_id: &str) -> Self {
        let segment = match version {
            BlockStorageVersion::V2 => "v2",
            BlockStorageVersion::V3 => "v3",
        };
        Self { url: below(&below(root, segment), project_id), version }
    }

    /// The root of this version (`…/v3`) and the root of all (`…`), for discovery.
    pub(super) fn roots(&self) -> [Url; 2] {
        let mut segments = segments(&self.url);
        [(); 2].map(|()| {
            segments.pop();
            let mut root = self.url.clone();
            root.set_path(&segments.join("/"));
            root
        })
    }
}

/// Major versions in the block storage root document, the best first, with the highest
/// microversion of 3.
///
/// `{"versions": [{"id": "v3.0", "version": "3.70", "min_version": "3.0", …}]}`
pub(super) fn block_storage_versions(
    document: &serde_json::Value,
) -> (Option<BlockStorageVersion>, Option<Microversion>) {
    let listed = document["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let find = |prefix: &str| {
        listed
            .iter()
            .find(|version| version["id"].as_str().is_some_and(|id| id.starts_with(prefix)))
    };
    if let Some(v3) = find("v3") {
        let highest = v3["version"].as_str().and_then(microversion);
        return (Some(BlockStorageVersion::V3), highest);
    }
    (find("v2").map(|_| BlockStorageVersion::V2), None)
}

fn microversion(text: &str) -> Option<Microversion> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn parse(written: &str, setting: &str) -> Result<Url, CloudError> {
    let unusable = |reason: &str| {
        CloudError::new(
            CloudErrorKind::BadRequest,
            format!("{setting} is not an http:// or https:// address: {reason}"),
        )
    };
    let mut url = Url::parse(written.trim()).map_err(|error| unusable(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(unusable("it begins with something else"));
    }
    url.set_query(None);
    url.set_fragment(None);
    // Credentials in the address would show up in errors and logs.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(unusable("it holds a user name or password"));
    }
    Ok(url)
}

fn segments(url: &Url) -> Vec<String> {
    let parts = url.path_segments().into_iter().flatten();
    parts.filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
}

fn below(base: &Url, segment: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{segment}", base.path().trim_end_matches('/')));
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn identity(written: &str) -> (String, Option<IdentityVersion>) {
        let endpoint = IdentityEndpoint::parse(written).unwrap();
        (endpoint.base().to_string(), endpoint.version)
    }

    #[test]
    fn every_form_of_the_identity_endpoint_is_understood() {
        use IdentityVersion::{V2, V3};
        for (written, base, version) in [
            ("http://h:5000/v2.0", "http://h:5000/", Some(V2)),
            ("http://h:5000/v2.0/", "http://h:5000/", Some(V2)),
            ("http://h:5000/v2.0/tokens", "http://h:5000/", Some(V2)),
            ("http://h:5000/v3", "http://h:5000/", Some(V3)),
            ("http://h:5000/v3/auth/tokens", "http://h:5000/", Some(V3)),
            ("https://h/identity/v3/auth/tokens/", "https://h/identity", Some(V3)),
            ("http://h:5000", "http://h:5000/", None),
            ("http://h:5000/", "http://h:5000/", None),
            (" https://h/identity/ ", "https://h/identity", None),
            ("http://[fd00::1]:5000/v3", "http://[fd00::1]:5000/", Some(V3)),
        ] {
            assert_eq!(identity(written), (base.to_owned(), version), "{written}");
        }
    }

    #[test]
    fn a_version_is_put_below_what_the_operator_wrote() {
        let endpoint = IdentityEndpoint::parse("https://h/identity/").unwrap();
        assert_eq!(endpoint.versioned(IdentityVersion::V3).as_str(), "https://h/identity/v3");
        let endpoint = IdentityEndpoint::parse("http://h:5000/v3").unwrap();
        assert_eq!(endpoint.versioned(IdentityVersion::V2).as_str(), "http://h:5000/v2.0");
    }

    #[test]
    fn an_endpoint_without_a_scheme_or_with_a_password_is_refused_without_repeating_it() {
        for written in ["h:5000/v3", "ftp://h/v3", "http://u:geheim@h:5000", "", "http://"] {
            let error = IdentityEndpoint::parse(written).unwrap_err();
            assert!(error.message.starts_with("Endpoint is not"), "{written}: {error}");
            assert!(!error.message.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn version_3_of_identity_is_preferred_and_2_taken_where_it_is_all() {
        let both = json!({"versions": {"values": [{"id": "v2.0"}, {"id": "v3.8"}]}});
        let old = json!({"versions": {"values": [{"id": "v2.0"}]}});
        assert_eq!(IdentityEndpoint::best_version(&both), Some(IdentityVersion::V3));
        assert_eq!(IdentityEndpoint::best_version(&old), Some(IdentityVersion::V2));
        assert_eq!(IdentityEndpoint::best_version(&json!({"versions": []})), None);
        assert_eq!(IdentityEndpoint::best_version(&json!("hello")), None);
    }

    #[test]
    fn the_project_is_put_into_the_block_storage_endpoint_once() {
        for (written, complete) in [
            ("http://h:8776/v3/abc", "http://h:8776/v3/abc"),
            ("http://h:8776/v3/abc/", "http://h:8776/v3/abc"),
            ("http://h:8776/v3", "http://h:8776/v3/abc"),
            ("https://h/volume/v2/", "https://h/volume/v2/abc"),
        ] {
            let parsed = BlockStorageAddress::parse(written, "abc").unwrap();
            let BlockStorageAddress::Complete(endpoint) = parsed else {
                panic!("{written} has a version")
            };
            assert_eq!(endpoint.url.as_str(), complete);
        }
        assert_eq!(
            BlockStorageAddress::parse("https://h/volume/", "abc").unwrap(),
            BlockStorageAddress::Unversioned(Url::parse("https://h/volume").unwrap())
        );
    }

    #[test]
    fn an_endpoint_of_another_project_or_of_version_1_is_refused() {
        let error = BlockStorageAddress::parse("http://h:8776/v3/other", "abc").unwrap_err();
        assert!(error.message.contains("\"other\"") && error.message.contains("\"abc\""));
        let error = BlockStorageAddress::parse("http://h:8776/v1/abc", "abc").unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Catalog);
    }

    #[test]
    fn roots_for_discovery_keep_a_prefix() {
        let parsed = BlockStorageAddress::parse("https://h/volume/v3/abc", "abc").unwrap();
        let BlockStorageAddress::Complete(endpoint) = parsed else { panic!("it has a version") };
        let [versioned, all] = endpoint.roots();
        assert_eq!(versioned.as_str(), "https://h/volume/v3");
        assert_eq!(all.as_str(), "https://h/volume");
    }

    #[test]
    fn the_highest_microversion_is_read_from_both_generations() {
        let zed = json!({"versions": [{"id": "v3.0", "version": "3.70", "min_version": "3.0"}]});
        assert_eq!(block_storage_versions(&zed), (Some(BlockStorageVersion::V3), Some((3, 70))));
        let queens = json!({"versions": [
            {"id": "v2.0", "version": "", "min_version": ""},
            {"id": "v3.0", "version": "3.50", "min_version": "3.0"}]});
        assert_eq!(block_storage_versions(&queens), (Some(BlockStorageVersion::V3), Some((3, 50))));
        let kilo = json!({"versions": [{"id": "v1.0"}, {"id": "v2.0"}]});
        assert_eq!(block_storage_versions(&kilo), (Some(BlockStorageVersion::V2), None));
        assert_eq!(block_storage_versions(&json!({})), (None, None));
    }
}
