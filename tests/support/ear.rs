//! An endpoint for events: it keeps what it is told, and answers as it is told to.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::Value;
use tokio::sync::watch;

/// A post as it came.
#[derive(Clone, Debug)]
pub struct Heard {
    pub id: String,
    pub timestamp: String,
    pub signature: Option<String>,
    pub raw: Bytes,
    pub json: Value,
    /// What it was answered.
    pub status: u16,
}

#[derive(Default)]
struct State {
    heard: Vec<Heard>,
    script: VecDeque<(u16, Option<u32>)>,
    default: u16,
}

#[derive(Clone)]
pub struct Ear {
    pub url: String,
    state: Arc<Mutex<State>>,
    holds: Arc<watch::Sender<bool>>,
}

impl Ear {
    pub async fn start() -> Ear {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/events", listener.local_addr().unwrap());
        let ear = Ear {
            url,
            state: Arc::new(Mutex::new(State { default: 200, ..State::default() })),
            holds: Arc::new(watch::Sender::new(false)),
        };
        let listening = ear.clone();
        let hear = move |headers: HeaderMap, body: Bytes| listening.clone().hear(headers, body);
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/events", post(hear))).await });
        ear
    }

    async fn hear(self, headers: HeaderMap, raw: Bytes) -> Response {
        let _ = self.holds.subscribe().wait_for(|holds| !holds).await;
        let mut state = self.state.lock().unwrap();
        let default = state.default;
        let (status, wait) = state.script.pop_front().unwrap_or((default, None));
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        state.heard.push(Heard {
            id: header("webhook-id").unwrap(),
            timestamp: header("webhook-timestamp").unwrap(),
            signature: header("webhook-signature"),
            json: serde_json::from_slice(&raw).unwrap(),
            raw,
            status,
        });
        let status = StatusCode::from_u16(status).unwrap();
        match wait {
            Some(seconds) => (status, [("retry-after", seconds.to_string())]).into_response(),
            None => status.into_response(),
        }
    }

    /// What the next post is answered, perhaps with Retry-After in seconds.
    pub fn will(&self, status: u16, wait: Option<u32>) {
        self.state.lock().unwrap().script.push_back((status, wait));
    }

    /// What all others are answered.
    pub fn always(&self, status: u16) {
        self.state.lock().unwrap().default = status;
    }

    /// No post is answered until it is let go.
    pub fn hold(&self, holds: bool) {
        self.holds.send_replace(holds);
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.state.lock().unwrap().heard.clone()
    }

    /// What was answered 2xx.
    pub fn taken(&self) -> Vec<Heard> {
        self.heard().into_iter().filter(|heard| heard.status < 300).collect()
    }

    /// Waits until so many posts were answered, and gives all. The bound turns a hang into a failure.
    pub async fn wait(&self, enough: impl Fn(&[Heard]) -> bool) -> Vec<Heard> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let heard = self.heard();
            if enough(&heard) {
                return heard;
            }
            assert!(Instant::now() < deadline, "gave up waiting after {} posts: {:#?}", heard.len(), heard.last());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
