//! Tokens.

use serde_json::{Value, json};

use super::{Client, on_paper, send};
use crate::sandbox::Behaviour;

#[tokio::test]
async fn a_token_ends_when_its_time_is_over() {
    let client = Client::new(Behaviour { token_seconds: 0, ..on_paper() }).await;
    assert_eq!(client.cinder("GET", "/volumes", Value::Null).await.status, 401);
}

#[tokio::test]
async fn an_application_credential_and_a_token_log_in_too() {
    let client = Client::new(on_paper()).await;
    let (id, secret) = client.sandbox.application_credential().unwrap();
    let credential = json!({"id": id, "secret": secret});
    let identity =
        json!({"methods": ["application_credential"], "application_credential": credential});
    let body = json!({"auth": {"identity": identity}});
    let answer = client.send("POST", "/identity/v3/auth/tokens", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    let token = answer.header("x-subject-token").unwrap();
    let identity = json!({"methods": ["token"], "token": {"id": token}});
    let body = json!({"auth": {"identity": identity}});
    let answer = client.send("POST", "/v3/auth/tokens", &body).await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    let headers = [("X-Auth-Token", token.as_str()), ("X-Subject-Token", token.as_str())];
    let shown = send(&client.sandbox, "GET", "/v3/auth/tokens", &headers, &Value::Null).await;
    assert_eq!(shown.unwrap().body["token"]["user"]["name"], "mesos");
}

#[tokio::test]
async fn without_the_old_apis_v2_is_not_there() {
    let client = Client::new(Behaviour { legacy_apis: false, ..on_paper() }).await;
    let old = client.send("GET", "/v2.0", &Value::Null).await.unwrap();
    assert_eq!(old.status, 404);
    let project = client.sandbox.project("mesos").unwrap();
    let old = client.send("GET", &format!("/volume/v2/{project}/volumes"), &Value::Null).await;
    assert_eq!(old.unwrap().status, 404);
}
