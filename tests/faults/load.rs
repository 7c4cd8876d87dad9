//! Clients that submit without a pause, through restarts and refusals, until they are told to stop.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::ledger::{Answer, Ledger, Talk};
use super::report::Random;

/// After a refusal a client holds its breath.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub clients: usize,
    /// Messages go to these in turn.
    pub domains: &'static [&'static str],
    pub bytes_min: u64,
    pub bytes_max: u64,
    /// Of each client, between two messages.
    pub pause: Duration,
}

pub struct Load {
    door: watch::Sender<Option<SocketAddr>>,
    state: Arc<State>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    /// Clients that have a connection.
    busy: AtomicUsize,
}

impl Load {
    pub fn start(ledger: &Arc<Ledger>, plan: Plan) -> Load {
        let (door, entrance) = watch::channel(None);
        let state = Arc::new(State::default());
        let client =
            |number| tokio::spawn(client(ledger.clone(), plan, number as u64, entrance.clone(), state.clone()));
        let clients = (0..plan.clients).map(client).collect();
        Load { door, state, clients }
    }

    pub fn open(&self, address: SocketAddr) {
        self.door.send_replace(Some(address));
    }

    pub fn shut(&self) {
        self.door.send_replace(None);
    }

    /// Until all clients have noted what they heard, after [`Load::shut`] and the server's end.
    pub async fn noted(&self) {
        while self.state.busy.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What is on its way gets its answer first.
    pub async fn finish(self) {
        self.state.stop.store(true, Ordering::Release);
        drop(self.door);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

async fn client(
    ledger: Arc<Ledger>,
    plan: Plan,
    number: u64,
    mut door: watch::Receiver<Option<SocketAddr>>,
    state: Arc<State>,
) {
    let mut random = Random((number + 7).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
    while !state.stop.load(Ordering::Acquire) {
        let Ok(address) = door.wait_for(Option::is_some).await.map(|address| *address) else { return };
        state.busy.fetch_add(1, Ordering::AcqRel);
        converse(&ledger, plan, address.unwrap(), &mut random, &state.stop).await;
        state.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection, as long as it takes mail.
async fn converse(ledger: &Ledger, plan: Plan, address: SocketAddr, random: &mut Random, stop: &AtomicBool) {
    let Some(Ok(mut talk)) = ledger.patiently(Talk::connect(address)).await else {
        return tokio::time::sleep(Duration::from_millis(1)).await;
    };
    while !stop.load(Ordering::Acquire) {
        let domain = plan.domains[random.below(plan.domains.len() as u64) as usize];
        let bytes = plan.bytes_min + random.below(plan.bytes_max - plan.bytes_min);
        let to = [format!("you@{domain}")];
        match ledger.send(&mut talk, &to, bytes as usize).await.1 {
            Answer::Taken if plan.pause.is_zero() => {}
            Answer::Taken => tokio::time::sleep(plan.pause).await,
            Answer::Refused(_) => return tokio::time::sleep(REFUSED_PAUSE).await,
            Answer::Cut => return,
        }
    }
}
