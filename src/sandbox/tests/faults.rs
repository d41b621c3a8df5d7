//! What the rules do to calls, and `/sandbox`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Client, on_paper};
use crate::sandbox::faults::{Action, Canned, Rule};

#[tokio::test]
async fn a_call_dropped_before_its_effect_has_none_and_one_dropped_after_has() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    let path = format!("{}/volumes/{volume}/action", client.root);
    for (action, status) in [(Action::DropBefore, "available"), (Action::DropAfter, "attaching")] {
        client.sandbox.faults().add(Rule::on("os-reserve", action));
        assert!(client.send("POST", &path, &json!({"os-reserve": {}})).await.is_none());
        assert_eq!(client.status(volume).await, status);
    }
    let entries = client.sandbox.faults().requests();
    let reserves: Vec<_> = entries.iter().filter(|entry| entry.call == "os-reserve").collect();
    assert_eq!(reserves.len(), 2);
    assert!(reserves.iter().all(|entry| entry.status.is_none()));
    assert!(reserves.iter().all(|entry| entry.volume_id == Some(volume)));
}

#[tokio::test]
async fn an_answer_can_be_another_half_or_no_json() {
    let client = Client::new(on_paper()).await;
    let path = format!("{}/volumes", client.root);
    let faults = client.sandbox.faults();
    faults.add(Rule::on("list-volumes", Action::Answer(Canned::retry_after(503, 7))));
    let answer = client.send("GET", &path, &Value::Null).await.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after").as_deref(), Some("7"));
    faults.add(Rule::on("list-volumes", Action::HalfBody));
    assert!(client.send("GET", &path, &Value::Null).await.is_none());
    faults.add(Rule::on("list-volumes", Action::NotJson));
    let answer = client.send("GET", &path, &Value::Null).await.unwrap();
    assert!(answer.body.as_str().unwrap().starts_with("<html>"));
    faults.add(Rule::on("list-volumes", Action::SlowBody));
    let endless = client.send("GET", &path, &Value::Null);
    assert!(tokio::time::timeout(Duration::from_millis(300), endless).await.is_err());
    faults.add(Rule::on("list-volumes", Action::Flood));
    let flood = client.send("GET", &path, &Value::Null);
    assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err());
}

#[tokio::test]
async fn an_effect_can_come_after_its_answer() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("a").await;
    let path = format!("{}/volumes/{volume}/action", client.root);
    let late = Action::AnswerBefore(Canned::status(504), 200);
    client.sandbox.faults().add(Rule::on("os-reserve", late));
    let answer = client.send("POST", &path, &json!({"os-reserve": {}})).await.unwrap();
    assert_eq!((answer.status, client.status(volume).await), (504, "available".to_owned()));
    let end = Instant::now() + Duration::from_secs(20);
    while client.status(volume).await != "attaching" {
        assert!(Instant::now() < end, "no effect");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_delay_comes_before_the_answer() {
    let client = Client::new(on_paper()).await;
    client.sandbox.faults().add(Rule::on("limits", Action::Delay(120)));
    let begun = Instant::now();
    client.get("/limits").await;
    assert!(begun.elapsed() >= Duration::from_millis(120));
}

#[tokio::test]
async fn revoked_tokens_are_refused_until_the_next_log_in() {
    let mut client = Client::new(on_paper()).await;
    client.sandbox.faults().add(Rule::on("list-volumes", Action::RevokeTokens));
    assert_eq!(client.cinder("GET", "/volumes", Value::Null).await.status, 401);
    client.log_in().await;
    client.get("/volumes").await;
}

#[tokio::test]
async fn a_create_that_fails_leaves_a_volume_in_error_and_a_message() {
    let client = Client::new(on_paper()).await;
    let failing = Rule::on("create-volume", Action::FailCreate("no space".into()));
    client.sandbox.faults().add(failing);
    let created = client.cinder("POST", "/volumes", json!({"volume": {"size": 1}})).await;
    let id: Uuid = created.body["volume"]["id"].as_str().unwrap().parse().unwrap();
    client.until(id, "error").await;
    let messages = client.get(&format!("/messages?resource_uuid={id}")).await;
    let text = messages["messages"][0]["user_message"].as_str().unwrap();
    assert!(text.ends_with("no space"), "{text}");
}

#[tokio::test]
async fn a_delete_can_fail_or_hang() {
    let client = Client::new(on_paper()).await;
    let faults = client.sandbox.faults();
    for (action, status) in [(Action::FailDelete, "error_deleting"), (Action::Stuck, "deleting")] {
        let volume = client.volume("a").await;
        faults.add(Rule::on("delete-volume", action).of_volume(volume));
        client.cinder("DELETE", &format!("/volumes/{volume}"), Value::Null).await;
        client.until(volume, status).await;
    }
}

#[tokio::test]
async fn another_process_adds_rules_and_reads_the_log_over_http() {
    let client = Client::new(on_paper()).await;
    let rule = json!({"call": "limits", "action": {"answer": {"status": 429}}});
    assert_eq!(client.send("POST", "/sandbox/faults", &rule).await.unwrap().status, 204);
    assert_eq!(client.cinder("GET", "/limits", Value::Null).await.status, 429);
    let log = client.send("GET", "/sandbox/requests?call=limits", &Value::Null).await.unwrap();
    assert_eq!(log.body[0]["status"], 429);
    client.send("DELETE", "/sandbox/requests", &Value::Null).await.unwrap();
    let log = client.send("GET", "/sandbox/requests", &Value::Null).await.unwrap();
    assert_eq!(log.body, json!([]));
    let count = client.send("GET", "/sandbox/connections", &Value::Null).await.unwrap();
    assert!(count.body.as_u64().unwrap() >= 5, "{count:?}");
    let wrong = json!({"call": "limits", "action": "explode"});
    assert_eq!(client.send("POST", "/sandbox/faults", &wrong).await.unwrap().status, 400);
}

#[tokio::test]
async fn fields_can_be_forced_and_volumes_are_a_table() {
    let client = Client::new(on_paper()).await;
    let volume = client.volume("web").await;
    let path = format!("/sandbox/volumes/{volume}");
    let forced = client.send("POST", &path, &json!({"status": "maintenance"})).await.unwrap();
    assert_eq!(forced.status, 204);
    assert_eq!(client.status(volume).await, "maintenance");
    let wrong = client.send("POST", &path, &json!({"colour": "red"})).await.unwrap();
    assert_eq!(wrong.status, 400);
    let table = client.send("GET", "/sandbox/volumes", &Value::Null).await.unwrap();
    let table = table.body.as_str().unwrap();
    assert!(table.contains(&format!("| {volume} | maintenance | web  |")), "{table}");
}

#[tokio::test]
async fn behaviour_changes_over_http() {
    let client = Client::new(on_paper()).await;
    let change = json!({"generation": "queens"});
    assert_eq!(client.send("PUT", "/sandbox/behaviour", &change).await.unwrap().status, 204);
    let refused = client.cinder("GET", "/volumes", Value::Null).await;
    assert_eq!(
        refused.error(),
        (406, "Version 3.70 is not supported by the API. Minimum is 3.0 and maximum is 3.50.")
    );
}
