//! `ClusterID`: several clusters in one project, each with volumes of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Cloud, Node};

async fn host(cloud: &Cloud, cluster: &str) -> Node {
    Node::start_with(cloud, json!({ "ClusterID": cluster })).await
}

/// Mounts the volume, leaves the text in it and unmounts it.
async fn write(node: &Node, name: &str, text: &str) {
    let at = node.mount(name, "c").await.unwrap();
    fs::write(at.join("whose"), text).unwrap();
    node.unmount(name, "c").await.unwrap();
}

async fn read(node: &Node, name: &str) -> String {
    let at = node.mount(name, "c").await.unwrap();
    let text = fs::read_to_string(at.join("whose")).unwrap();
    node.unmount(name, "c").await.unwrap();
    text
}

/// The id of the volume of this name that a host means.
async fn id_of(node: &Node, name: &str) -> String {
    node.get(name).await.unwrap()["Status"]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_cluster_has_its_own_volume_of_a_name() {
    let cloud = Cloud::start().await;
    let (red, blue) = tokio::join!(host(&cloud, "red"), host(&cloud, "blue"));
    // At once: neither takes the other's for a twin.
    let (one, other) = tokio::join!(red.create("web", json!({})), blue.create("web", json!({})));
    one.unwrap();
    other.unwrap();
    red.create("only-red", json!({})).await.unwrap();
    assert_eq!(cloud.volumes().await.len(), 3);
    write(&red, "web", "red").await;
    write(&blue, "web", "blue").await;
    // And on other hosts of theirs.
    let all = json!({ "ClusterID": "blue", "ListAll": true, "RemoveForeign": true });
    let (red_2, blue_2) = tokio::join!(host(&cloud, "red"), Node::start_with(&cloud, all));
    assert_eq!(read(&red_2, "web").await, "red");
    assert_eq!(read(&blue_2, "web").await, "blue");
    assert_eq!(red_2.get("web").await.unwrap()["Status"]["cluster"], "red");
    let mut listed = red_2.list().await.unwrap();
    listed.sort();
    assert_eq!(listed, ["only-red", "web"]);
    assert_eq!(blue_2.list().await.unwrap(), ["web"]);
    // What is another's does not exist by name,
    assert!(blue_2.get("only-red").await.unwrap_err().contains("no volume \"only-red\""));
    assert!(blue_2.mount("only-red", "c").await.unwrap_err().contains("no volume"));
    let clone = blue_2.create("copy", json!({ "from": "only-red" })).await.unwrap_err();
    assert!(clone.contains("no volume \"only-red\""), "{clone}");
    blue_2.remove("only-red").await.unwrap();
    // and is refused by id.
    let theirs = id_of(&red, "only-red").await;
    let told =
        "belongs to cluster \"red\" (docker.cluster in its metadata), and this host to \"blue\"";
    for error in [
        blue_2.get(&theirs).await.unwrap_err(),
        blue_2.create(&theirs, Value::Null).await.unwrap_err(),
        blue_2.mount(&theirs, "c").await.unwrap_err(),
        blue_2.remove(&theirs).await.unwrap_err(),
        blue_2.create("copy", json!({ "from": theirs })).await.unwrap_err(),
        blue_2.create("taken", json!({ "volume_id": theirs })).await.unwrap_err(),
    ] {
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(cloud.volumes().await.len(), 3);
    // A removal is of one's own.
    blue_2.remove("web").await.unwrap();
    assert_eq!(cloud.volume("web").await["metadata"]["docker.cluster"], "red");
    assert_eq!(read(&red, "web").await, "red");
}

#[tokio::test]
async fn a_host_that_does_not_say_its_cluster_makes_no_blank_twin() {
    let cloud = Cloud::start().await;
    let (red, plain) = tokio::join!(host(&cloud, "red"), Node::start(&cloud));
    red.create("web", json!({})).await.unwrap();
    write(&red, "web", "red").await;
    let id = id_of(&red, "web").await;
    for name in ["web", &id] {
        for error in [
            plain.get(name).await.unwrap_err(),
            plain.create(name, json!({})).await.unwrap_err(),
            plain.mount(name, "c").await.unwrap_err(),
            plain.remove(name).await.unwrap_err(),
        ] {
            assert!(error.contains("this host has no ClusterID in its config"), "{error}");
            assert!(error.contains("set \"ClusterID\": \"red\""), "{error}");
        }
    }
    assert!(plain.list().await.unwrap().is_empty());
    assert_eq!(cloud.volumes().await.len(), 1);
    plain.create("other", json!({})).await.unwrap();
    assert_eq!(read(&red, "web").await, "red");
    // Once it is gone, the name is free.
    red.remove("web").await.unwrap();
    plain.create("web", json!({})).await.unwrap();
}

#[tokio::test]
async fn volumes_of_before_the_key_was_set_are_used_and_not_deleted() {
    let cloud = Cloud::start().await;
    let id = {
        let before = Node::start(&cloud).await;
        before.create("web", json!({})).await.unwrap();
        write(&before, "web", "before").await;
        id_of(&before, "web").await
    };
    let red = host(&cloud, "red").await;
    assert!(red.list().await.unwrap().is_empty());
    // Docker creates what it does not know.
    red.create("web", json!({})).await.unwrap();
    assert_eq!(cloud.volumes().await.len(), 1, "no blank twin");
    assert_eq!(read(&red, "web").await, "before");
    assert_eq!(red.list().await.unwrap(), ["web"]);
    let error = red.remove("web").await.unwrap_err();
    let mended = format!("openstack volume set --property docker.cluster=red {id}");
    assert!(error.contains(&mended), "{error}");
    assert_eq!(cloud.status("web").await, "available");
    let tag = json!({ "metadata": { "docker.cluster": "red" } });
    cloud.cinder("POST", &format!("/volumes/{id}/metadata"), tag).await;
    assert_eq!(host(&cloud, "red").await.list().await.unwrap(), ["web"]);
    red.remove("web").await.unwrap();
    // One made elsewhere is taken in, and is this cluster's from then on.
    let elsewhere = cloud.create("elsewhere", json!({})).await;
    red.create("taken", json!({ "volume_id": elsewhere })).await.unwrap();
    let error = host(&cloud, "blue").await.get(&elsewhere).await.unwrap_err();
    assert!(error.contains("belongs to cluster \"red\""), "{error}");
}

/// The commands of an operator keep to their cluster, too.
#[tokio::test]
async fn an_operator_sees_and_adopts_in_their_cluster() {
    let cloud = Cloud::start().await;
    let (red, blue) = tokio::join!(host(&cloud, "red"), host(&cloud, "blue"));
    red.create("web", json!({})).await.unwrap();
    blue.create("web", json!({ "fs": "xfs" })).await.unwrap();
    red.create("only-red", json!({})).await.unwrap();
    write(&red, "only-red", "red").await;
    let theirs = id_of(&red, "only-red").await;
    let said = async |node: &Node, words: &[&str]| {
        let output = node.cli(words).await;
        let (out, err) = (output.stdout, output.stderr);
        (output.status.success(), String::from_utf8([out, err].concat()).unwrap())
    };
    let listed = async |words: &[&str]| {
        let (_, text) = said(&blue, words).await;
        let rows: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        let row = |row: &Value| (row["name"].clone(), row["cluster"].clone(), row["ours"].clone());
        rows.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    let own = (json!("web"), json!("blue"), json!(true));
    assert_eq!(listed(&["ls", "--json"]).await, [own]);
    let all = listed(&["ls", "--all", "--json"]).await;
    assert_eq!(all.iter().filter(|(_, _, ours)| *ours == json!(true)).count(), 1);
    assert_eq!(all.len(), 3);
    // Of two of a name it is one's own.
    let another = host(&cloud, "blue").await;
    let (_, shown) = said(&another, &["inspect", "web", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["cinder"]["cluster"], &shown["cinder"]["options"]["fs"]),
        (&json!("blue"), &json!("xfs"))
    );
    for words in [
        &["adopt", &theirs, "mine", "--id", &theirs][..],
        &["release", &theirs, "--id", &theirs],
        &["resize", &theirs, "2"],
        &["snapshot", &theirs, "s"],
    ] {
        let (done, text) = said(&blue, words).await;
        assert!(!done && text.contains("belongs to cluster \"red\""), "{words:?}: {text}");
    }
    // One that says nothing is adopted, and is this cluster's then.
    let elsewhere = {
        let plain = Node::start(&cloud).await;
        plain.create("plain", json!({})).await.unwrap();
        write(&plain, "plain", "plain").await;
        id_of(&plain, "plain").await
    };
    let (done, text) = said(&blue, &["adopt", &elsewhere, "only-red", "--id", &elsewhere]).await;
    assert!(done, "{text}");
    assert_eq!(read(&blue, "only-red").await, "plain");
    assert_eq!(read(&red, "only-red").await, "red");
    let mut names = host(&cloud, "blue").await.list().await.unwrap();
    names.sort();
    assert_eq!(names, ["only-red", "web"]);
    blue.remove("only-red").await.unwrap();
    assert_eq!(read(&red, "only-red").await, "red");
}

#[tokio::test]
async fn another_cluster_id_takes_no_mounted_volume_away() {
    let cloud = Cloud::start().await;
    let mut node = host(&cloud, "red").await;
    node.create("web", json!({})).await.unwrap();
    let at = node.mount("web", "c").await.unwrap();
    node.stop();
    node.set("ClusterID", json!("blue"));
    node.run().await;
    assert!(at.exists());
    assert_eq!(node.get("web").await.unwrap()["Mountpoint"], json!(at));
    node.mount("web", "d").await.unwrap();
    node.unmount("web", "d").await.unwrap();
    node.unmount("web", "c").await.unwrap();
    cloud.until("web", "available").await;
    // It is not this host's any more, and the engine is not told that it is gone.
    for error in [node.mount("web", "c").await.unwrap_err(), node.remove("web").await.unwrap_err()]
    {
        assert!(error.contains("belongs to cluster \"red\""), "{error}");
    }
    assert_eq!(cloud.volumes().await.len(), 1);
    node.assert_clean(&cloud);
}

#[tokio::test]
async fn a_cluster_costs_no_call() {
    let cloud = Cloud::start().await;
    let (plain, red) = tokio::join!(Node::start(&cloud), host(&cloud, "red"));
    let mut costs = Vec::new();
    for (node, name) in [(&plain, "plain"), (&red, "red")] {
        let mut calls = Vec::new();
        for round in 0..2 {
            cloud.forget_calls();
            node.create(&format!("{name}{round}"), json!({})).await.unwrap();
            write(node, &format!("{name}{round}"), "").await;
            node.get(&format!("{name}{round}")).await.unwrap();
            node.list().await.unwrap();
            calls = cloud.calls();
            // How often a volume is looked at that is being made depends on the time it takes.
            calls.retain(|call| call != "show-volume");
            calls.sort();
        }
        costs.push(calls);
    }
    assert_eq!(costs[0], costs[1]);
}
