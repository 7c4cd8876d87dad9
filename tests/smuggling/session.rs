//! The session without a network, which cuts exactly: every form at every place in every cut; and cuts by chance.

use crate::bare::Bare;
use crate::forms::{Content, Form, MAX_SIZE, boundary, cuts, forms, is_unclean, named, pieces, tail};
use crate::support::conversation::{Setting, Transport};

const ENVELOPE: &[u8] = b"EHLO c.test\r\nMAIL FROM:<shop@home.test>\r\nRCPT TO:<you@home.test>\r\n";
/// Cuts by chance, of all forms at all places; POSTRIDER_SMUGGLING_RUNS wants more.
const CHANCES: u64 = 500;

fn server() -> Bare {
    let setting = Setting {
        max_size: MAX_SIZE as u64,
        domains: vec!["home.test".into()],
        recipients: vec!["you@home.test".into(), "victim@home.test".into()],
        ..Setting::default()
    };
    Bare::new(&setting, usize::MAX)
}

/// Senders of what was taken; each message is held to be clean.
fn taken(server: &mut Bare) -> Vec<String> {
    let senders = server.drafts.drain(..).map(|draft| {
        assert!(!is_unclean(draft.content.head()), "{:?}", draft.content.head());
        draft.envelope.mail_from.to_string()
    });
    senders.collect()
}

fn by_data(pieces: &[&[u8]]) -> Vec<String> {
    let mut server = server();
    server.send(&[ENVELOPE, b"DATA\r\n"].concat());
    pieces.iter().for_each(|piece| server.send(piece));
    // As an honest client ends its message.
    server.send(b"\r\n.\r\n");
    taken(&mut server)
}

/// `chunks`: what each BDAT holds.
fn by_bdat(chunks: &[&[u8]]) -> Vec<String> {
    let mut server = server();
    server.send(ENVELOPE);
    for chunk in chunks {
        server.send(format!("BDAT {}\r\n", chunk.len()).as_bytes());
        server.send(chunk);
    }
    server.send(b"BDAT 0 LAST\r\n");
    taken(&mut server)
}

/// What the rule says of a message by DATA.
fn assert_data(form: &Form, content: &Content, senders: &[String], what: &str) {
    let strangers = senders.iter().filter(|sender| *sender != "shop@home.test").count();
    if form.is_end {
        // What follows a legal end are commands of this client, said in the open.
        assert!(senders.len() <= 2 && strangers <= 1, "{what}: {senders:?}");
    } else {
        let wanted = usize::from(!content.is_unclean() && !content.is_over);
        assert_eq!((senders.len(), strangers), (wanted, 0), "{what}: {senders:?}");
    }
}

#[test]
fn every_form_at_every_place_in_every_cut_is_one_message_or_none() {
    let (positions, splits) = (named("positions", 8), named("splits", 10));
    let victim = tail("victim@home.test");
    let (mut combinations, mut conversations) = (0, 0);
    for form in forms() {
        for position in &positions {
            for split in &splits {
                let content = Content::new(position, &form, &victim, boundary(split));
                let what = format!("{} {position} {split}", form.id);
                for cut in cuts(split, &content) {
                    let pieces = pieces(&content.bytes, &cut);
                    assert_data(&form, &content, &by_data(&pieces), &what);
                    // In chunks it is content, whatever it looks like, or refused.
                    let wanted = usize::from(!content.is_unclean() && !content.is_over);
                    let by_chunks = by_bdat(&pieces);
                    assert_eq!(by_chunks, vec!["shop@home.test"; wanted], "{what} in {} chunks", pieces.len());
                    conversations += 2;
                }
                combinations += 1;
            }
        }
    }
    assert_eq!(combinations, 29 * 8 * 10);
    println!("{combinations} combinations, {conversations} conversations");
}

#[test]
fn cut_by_chance_it_is_one_message_or_none() {
    let wanted = std::env::var("POSTRIDER_SMUGGLING_RUNS").map_or(CHANCES, |runs| runs.parse().unwrap());
    let (forms, positions) = (forms(), named("positions", 8));
    let victim = tail("victim@home.test");
    for seed in 0..wanted {
        // SplitMix64: the same cuts on every machine.
        let mut state = seed;
        let mut dice = |below: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) as usize % below
        };
        let form = &forms[dice(forms.len())];
        let content = Content::new(&positions[dice(positions.len())], form, &victim, None);
        let mut cut: Vec<usize> = (0..dice(20)).map(|_| dice(content.bytes.len() + 1)).collect();
        cut.extend((0..dice(6)).map(|_| content.at + dice(content.form_len + 1)));
        cut.sort_unstable();
        let pieces = pieces(&content.bytes, &cut);
        let what = format!("seed {seed}: {}", form.id);
        assert_data(form, &content, &by_data(&pieces), &what);
        let wanted = usize::from(!content.is_unclean() && !content.is_over);
        assert_eq!(by_bdat(&pieces).len(), wanted, "{what}");
    }
}
