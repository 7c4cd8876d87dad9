//! The code that every message goes through, measured piece by piece with Criterion:
//! `make bench-paths`.
//!
//! Environment: `CLAIM_QUEUED`, the length of the queue from which is claimed (10000).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/fill.rs"]
#[allow(dead_code, reason = "a part of it is for the other bench")]
mod fill;
#[path = "../tests/support/records.rs"]
mod records;
mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fill::Filling;
use postrider::clock::Clock;
use postrider::message::Domain;
use postrider::message::header::Headers;
use postrider::queue::record::Recipient;
use postrider::queue::{NewMessage, Step};
use postrider::smtp::command::Command;
use postrider::smtp::wire::DataDecoder;
use postrider::store::Batch;
use support::{load, setting};
use tokio::runtime::Runtime;

const HOUR: u64 = 3_600_000;

fn commands(c: &mut Criterion) {
    let own = Domain::parse("mail.home.test").unwrap();
    let lines: [&[u8]; 5] = [
        b"EHLO client.example.com",
        b"MAIL FROM:<someone.or.other@example.com> SIZE=10240 BODY=8BITMIME",
        b"RCPT TO:<customer+tag@example.org> NOTIFY=FAILURE ORCPT=rfc822;customer@example.org",
        b"DATA",
        b"QUIT",
    ];
    let mut group = c.benchmark_group("command");
    group.throughput(Throughput::Elements(lines.len() as u64));
    group.bench_function("parse the five of a message", |b| {
        b.iter(|| lines.iter().for_each(|line| drop(black_box(Command::parse(black_box(line), &own)))))
    });
    group.finish();
}

fn content(c: &mut Criterion) {
    let plain = load::content(100 * 1024, 1);
    // Every second line begins with a stuffed dot.
    let dotted: Vec<u8> =
        b"..and so on, as long as a line of text is\r\nand another one that has no dot\r\n".repeat(1400);
    let dotted = [dotted.as_slice(), b".\r\n"].concat();
    let mut group = c.benchmark_group("dot-unstuffing");
    for (name, input) in [("100 KiB, no dots", &plain), ("100 KiB, every second line", &dotted)] {
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || Vec::with_capacity(input.len()),
                |out| black_box(DataDecoder::new(u64::MAX).feed(black_box(input), out)),
                BatchSize::SmallInput,
            )
        });
    }
    group.finish();
}

fn headers(c: &mut Criterion) {
    let mut message = Vec::new();
    for hop in 0..5 {
        message.extend_from_slice(format!("Received: from mx{hop}.example.com (mx{hop}.example.com [192.0.2.{hop}])\r\n\tby mail.example.org with ESMTPS id {hop}abcdef;\r\n\tSat, 21 Nov 2026 12:00:00 +0000\r\n").as_bytes());
    }
    message.extend_from_slice(b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.com; s=key;\r\n\th=from:to:subject:date; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=;\r\n\tb=");
    message.extend_from_slice(&b"abcdefgh".repeat(40));
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(&load::message(10 * 1024, 1));
    let mut group = c.benchmark_group("header");
    group
        .bench_function("scan 12 fields", |b| b.iter(|| black_box(Headers::parse(black_box(&message)).fields().len())));
    group.finish();
}

fn commit(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let clock = Clock::System;
    let mut group = c.benchmark_group("commit");
    for (name, sync) in [("10 KiB, synced", true), ("10 KiB, unsynced", false)] {
        let folder = support::scratch();
        // What is handed over to the dispatcher is dropped.
        let (queue, _) = fill::open(folder.path(), &clock, sync);
        let body = vec![Bytes::from(load::message(10 * 1024, 1))];
        let due = clock.now() + HOUR;
        group.bench_function(name, |b| {
            b.iter(|| {
                let message = records::message(queue.new_id(), &body, 1);
                let recipients = vec![records::recipient("you@far.test", due)];
                let new = NewMessage { message, body: body.clone(), recipients, extra: Batch::new() };
                runtime.block_on(queue.enqueue(new)).unwrap();
            })
        });
    }
    group.finish();
}

fn claim(c: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let queued = setting("CLAIM_QUEUED", 10_000);
    let folder = support::scratch();
    let due = Clock::System.now() + HOUR;
    {
        // With the clock at which they are not due yet, so that none is claimed as fresh mail.
        let (queue, _) = fill::open(folder.path(), &Clock::System, false);
        let filling = Filling { count: queued, bodies: fill::bodies(2048), domains: 10_000, due, spread: HOUR };
        runtime.block_on(fill::fill(&queue, &Clock::System, &filling));
    }
    let (queue, _) = fill::open(folder.path(), &Clock::manual(due + 2 * HOUR), false);
    let mut group = c.benchmark_group("claim");
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("one of {queued} that are due"), |b| {
        b.iter_custom(|wanted| {
            let mut claimed = 0;
            let mut time = Duration::ZERO;
            while claimed < wanted {
                let started = Instant::now();
                let scan = queue.claim_due().unwrap();
                time += started.elapsed();
                // Given back as they are.
                for each in scan.claimed {
                    let unchanged =
                        |(number, before): (u32, Recipient)| Step { number, after: Some(before.clone()), before };
                    let steps: Vec<Step> = each.recipients.into_iter().map(unchanged).collect();
                    claimed += steps.len() as u64;
                    queue.release(&each.message, &steps, &[]);
                }
            }
            // A scan brings more than was asked for.
            time.mul_f64(wanted as f64 / claimed as f64)
        })
    });
    group.finish();
}

criterion_group!(paths, commands, content, headers, commit, claim);
criterion_main!(paths);
