//! The service catalog: region + interface + type → endpoint.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{CloudError, CloudErrorKind};
use crate::shown::shown;

/// Catalog types of Cinder, the best first.
pub(super) const BLOCK_STORAGE: &[&str] = &["volumev3", "block-storage", "volumev2", "volume"];
/// Catalog types of Glance.
pub(super) const IMAGE: &[&str] = &["image"];

/// So many of the services that are there stand in an error.
const MOST_SHOWN: usize = 5;

/// The endpoints that came with a token.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    service_type: String,
    region: String,
    interface: String,
    url: String,
}

impl Catalog {
    /// Reads `token.catalog` of Keystone v3: one entry for each interface.
    pub(super) fn from_v3(catalog: &Value) -> Self {
        let mut endpoints = Vec::new();
        for (service_type, endpoint) in entries(catalog) {
            let region = text(endpoint, "region").or_else(|| text(endpoint, "region_id"));
            if let (Some(interface), Some(url)) =
                (text(endpoint, "interface"), text(endpoint, "url"))
            {
                endpoints.push(Endpoint {
                    service_type: service_type.to_owned(),
                    region: region.unwrap_or_default(),
                    interface,
                    url,
                });
            }
        }
        Self { endpoints }
    }

    /// Reads `access.serviceCatalog` of Keystone v2.0: one entry with a URL for each interface.
    pub(super) fn from_v2(catalog: &Value) -> Self {
        let mut endpoints = Vec::new();
        for (service_type, endpoint) in entries(catalog) {
            for interface in ["public", "internal", "admin"] {
                if let Some(url) = text(endpoint, &format!("{interface}URL")) {
                    endpoints.push(Endpoint {
                        service_type: service_type.to_owned(),
                        region: text(endpoint, "region").unwrap_or_default(),
                        interface: interface.to_owned(),
                        url,
                    });
                }
            }
        }
        Self { endpoints }
    }

    /// The endpoint of the first of these types that the region has. An empty region is any.
    pub(super) fn find(
        &self,
        service: &str,
        types: &[&str],
        region: &str,
        interface: &str,
    ) -> Result<&str, CloudError> {
        // `publicURL` is how v2.0 and older clients write it.
        let interface = interface.strip_suffix("URL").unwrap_or(interface);
        let matching = |wanted: &&str| {
            self.endpoints.iter().find(|endpoint| {
                endpoint.service_type == *wanted
                    && endpoint.interface == interface
                    && (region.is_empty() || endpoint.region == region)
            })
        };
        if let Some(endpoint) = types.iter().find_map(matching) {
            return Ok(&endpoint.url);
        }
        let place = if region.is_empty() { "any region" } else { region };
        Err(CloudError::new(
            CloudErrorKind::Catalog,
            format!(
                "the service catalog has no {service} endpoint ({}) in {place} with interface \
                 {interface}; {}",
                types.join(", "),
                self.there_is(types)
            ),
        ))
    }

    /// What an operator can choose from: the service elsewhere, or else all that there is.
    fn there_is(&self, types: &[&str]) -> String {
        let mut same = BTreeMap::<_, Vec<&str>>::new();
        for endpoint in &self.endpoints {
            if types.contains(&endpoint.service_type.as_str()) {
                let interfaces =
                    same.entry((&endpoint.service_type, &endpoint.region)).or_default();
                interfaces.push(&endpoint.interface);
            }
        }
        if !same.is_empty() {
            let list: Vec<_> = same
                .iter()
                .map(|((kind, region), interfaces)| {
                    format!(
                        "{} in {} ({})",
                        shown(kind),
                        shown(region),
                        shown(&interfaces.join(", "))
                    )
                })
                .take(MOST_SHOWN)
                .collect();
            return format!("it has {}; check Region", list.join(", "));
        }
        let mut types: Vec<_> =
            self.endpoints.iter().map(|endpoint| endpoint.service_type.as_str()).collect();
        types.sort_unstable();
        types.dedup();
        if types.is_empty() {
            return "it is empty: the token may have no project, check TenantID".to_owned();
        }
        let types: Vec<_> = types.into_iter().map(shown).take(MOST_SHOWN).collect();
        format!("it has only {}", types.join(", "))
    }
}

fn entries(catalog: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let services = catalog.as_array().into_iter().flatten();
    services.flat_map(|service| {
        let service_type = service["type"].as_str().unwrap_or_default();
        let endpoints = service["endpoints"].as_array().into_iter().flatten();
        endpoints.map(move |endpoint| (service_type, endpoint))
    })
}

fn text(value: &Value, key: &str) -> Option<String> {
    value[key].as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As Keystone 22 (Zed) answered, shortened.
    fn modern() -> Catalog {
        let endpoints = |url: &str| {
            json!(["public", "internal", "admin"].map(|interface| json!({
                "interface": interface, "region_id": "RegionOne", "region": "RegionOne",
                "url": format!("{url}/{interface}")})))
        };
        Catalog::from_v3(&json!([
            {"type": "identity", "name": "keystone", "endpoints": endpoints("http://k")},
            {"type": "block-storage", "name": "cinder", "endpoints": endpoints("http://b")},
            {"type": "volumev3", "name": "cinderv3", "endpoints": endpoints("http://v3")},
            {"type": "volumev3", "endpoints": [
                {"interface": "public", "region": "RegionTwo", "url": "http://two"}]},
        ]))
    }

    /// As Keystone 12 (Pike) answered v2.0, shortened.
    fn old() -> Catalog {
        Catalog::from_v2(&json!([
            {"type": "identity", "name": "keystone", "endpoints_links": [], "endpoints": [
                {"region": "RegionOne", "publicURL": "http://k", "adminURL": "http://ka",
                 "internalURL": "http://ki", "id": "08b531dc26a8487d9b1995f53e4f6004"}]},
            {"type": "volumev2", "name": "cinderv2", "endpoints_links": [], "endpoints": [
                {"region": "RegionOne", "publicURL": "http://v2", "adminURL": "http://v2a",
                 "internalURL": "http://v2i", "id": "942c805aecbb446199dab5a03536b093"}]},
        ]))
    }

    fn cinder<'a>(
        catalog: &'a Catalog,
        region: &str,
        interface: &str,
    ) -> Result<&'a str, CloudError> {
        catalog.find("block storage", BLOCK_STORAGE, region, interface)
    }

    #[test]
    fn the_best_type_of_the_region_and_interface_is_chosen() {
        assert_eq!(cinder(&modern(), "RegionOne", "public").unwrap(), "http://v3/public");
        assert_eq!(cinder(&modern(), "RegionOne", "internalURL").unwrap(), "http://v3/internal");
        assert_eq!(cinder(&modern(), "RegionTwo", "public").unwrap(), "http://two");
        assert_eq!(cinder(&old(), "RegionOne", "admin").unwrap(), "http://v2a");
        assert_eq!(cinder(&old(), "", "public").unwrap(), "http://v2");
    }

    #[test]
    fn a_missing_region_is_answered_with_what_there_is() {
        let error = cinder(&modern(), "regionone", "public").unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Catalog);
        assert!(error.message.contains("in regionone with interface public"), "{error}");
        assert!(
            error.message.contains("volumev3 in RegionOne (public, internal, admin)"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_service_is_answered_with_the_types_there_are() {
        let error = old().find("image", IMAGE, "RegionOne", "public").unwrap_err();
        assert!(error.message.contains("it has only identity, volumev2"), "{error}");
        let error = cinder(&Catalog::default(), "", "public").unwrap_err();
        assert!(error.message.contains("it is empty"), "{error}");
    }
}
