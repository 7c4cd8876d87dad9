//! A webhook endpoint that says 200 and remembers what it got, on a loopback port of its own.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use serde_json::Value;

#[derive(Clone)]
pub struct Hook {
    pub url: String,
    received: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    pub async fn start() -> Hook {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let received: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = received.clone();
        let take = move |body: Bytes| async move {
            kept.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        };
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(take))).await });
        Hook { url, received }
    }

    /// The bodies, in the order in which they came.
    pub fn received(&self) -> Vec<Value> {
        self.received.lock().unwrap().clone()
    }
}
