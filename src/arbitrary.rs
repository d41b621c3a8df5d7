//! Foreign bytes for property tests: what no one would send, and what is nearly right.

use proptest::prelude::*;
use serde_json::{Map, Value};

/// Text with the characters that have a meaning somewhere.
pub fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9.:-]{0,12}",
        "[\\x00-\\x7f]{0,12}",
        any::<String>(),
        Just("10.0.0.9:3260".to_owned()),
        Just("iqn.2010-10.org.openstack:volume-1".to_owned()),
        Just("../../etc\npassword = x".to_owned()),
    ]
}

/// Any JSON.
pub fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(text(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// An object with some of these members, each of any JSON.
pub fn object(members: &'static [&'static str]) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map(prop::sample::select(members), json(), 0..members.len())
        .prop_map(|found| found.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
