//! Over HTTP, as a browser without JavaScript would.

use std::time::Duration;

use postrider::admin::view::Status;
use postrider::admin::{Backend, Filter, Page};
use postrider::events::Event;

use crate::house::{FORM, House, LATER, NEVER, TOKEN, Visitor, ask, form};

const PAGES: [&str; 8] =
    ["/", "/?range=day", "/queue", "/log", "/destinations", "/suppressions", "/captured", "/queue?status=damaged"];

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_token_and_the_api_is_as_it_was() {
    let house = House::new().await;
    for page in PAGES.iter().filter(|page| **page != "/") {
        let answer = ask(house.http, &format!("GET {page}"), &[], "").await;
        assert_eq!(answer.status, 303, "{page}");
        let next: String = form_urlencoded::byte_serialize(page.as_bytes()).collect();
        assert_eq!(answer.field("location"), Some(format!("/login?next={next}").as_str()));
        assert_eq!(answer.body, "");
    }
    assert_eq!(ask(house.http, "GET /", &[], "").await.field("location"), Some("/login"));
    for value in ["", "abc", TOKEN] {
        let cookie = format!("Cookie: postrider_session_{}={value}", house.http.port());
        assert_eq!(ask(house.http, "GET /queue", &[&cookie], "").await.status, 303, "{cookie}");
    }
    for action in ["/queue/retry", "/suspend", "/resume", "/suppressions/add", "/logout", "/captured/delete"] {
        assert_eq!(
            ask(house.http, &format!("POST {action}"), &[FORM], "kind=all&csrf=x").await.status,
            401,
            "{action}"
        );
    }
    for token in ["", "wrong", &TOKEN[1..], &format!("{TOKEN}x")] {
        let answer = ask(house.http, "POST /login", &[FORM], &form([&("token", token)])).await;
        assert_eq!((answer.status, answer.field("set-cookie")), (401, None), "{token}");
    }
    // The door with a bearer is another one: the cookie opens none of it, the token all.
    let visitor = house.log_in().await;
    for path in ["/api/v1/queue", "/api/v1/status", "/metrics"] {
        assert_eq!(visitor.get(path).await.status, 401, "{path}");
        let bearer = format!("Authorization: Bearer {TOKEN}");
        assert_eq!(ask(house.http, &format!("GET {path}"), &[&bearer], "").await.status, 200, "{path}");
    }
    assert_eq!(visitor.send("/api/v1/suspend", &["Content-Type: application/json"], "{}").await.status, 401);
    assert_eq!(visitor.get("/healthz").await.status, 200);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_a_cookie_for_this_host_and_ends_with_the_log_out() {
    let house = House::new().await;
    let answer = ask(house.http, "POST /login", &[FORM], &format!("token={TOKEN}&next=%2Fqueue%3Fto%3Da")).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/queue?to=a")));
    let cookie = answer.field("set-cookie").unwrap().to_owned();
    for wanted in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=43200"] {
        assert!(cookie.contains(wanted), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains(TOKEN), "{cookie}");
    let behind = ["X-Forwarded-Proto: https", FORM];
    let answer = ask(house.http, "POST /login", &behind, &format!("token={TOKEN}&next=//evil.example/")).await;
    assert_eq!(answer.field("location"), Some("/"), "to our own pages only");
    assert!(answer.field("set-cookie").unwrap().ends_with("; Secure"));

    let visitor = house.log_in().await;
    assert_eq!(visitor.get("/").await.status, 200);
    assert_eq!(visitor.get("/login").await.field("location"), Some("/"));
    let elsewhere = ["Host: evil.example", &format!("Cookie: {}", visitor.cookie)];
    assert_eq!(ask(house.http, "GET /queue", &elsewhere, "").await.status, 303, "a name that was made to lead here");
    let answer = visitor.post("/logout", &[]).await;
    assert_eq!(answer.field("location"), Some("/login"));
    assert!(answer.field("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(visitor.get("/").await.status, 303);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_sent_with_a_policy_that_allows_nothing_from_elsewhere() {
    let house = House::new().await;
    house.send("later@far.test", "x").await;
    let visitor = house.log_in().await;
    for page in PAGES.iter().chain(&["/messages/0000000000000", "/queue?older=x", "/nothing-here", "/login"]) {
        let answer =
            if *page == "/login" { ask(house.http, "GET /login", &[], "").await } else { visitor.get(page).await };
        if *page == "/nothing-here" {
            assert_eq!(answer.status, 401, "what is no page is the API's");
            continue;
        }
        let policy = answer.field("content-security-policy").unwrap_or_else(|| panic!("{page}: {}", answer.head));
        for wanted in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(wanted), "{page}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.field("x-content-type-options"), Some("nosniff"), "{page}");
        assert_eq!(answer.field("cache-control"), Some("no-store"), "{page}");
        // Nothing inline, nothing from elsewhere.
        for bad in
            [" style=\"", "<style", " onclick", " onload", "javascript:", "https://", "src=\"http", "href=\"http"]
        {
            assert!(!answer.body.contains(bad), "{page} has {bad}");
        }
        for script in answer.body.split("<script").skip(1) {
            assert!(script.starts_with(" src=\"/assets/"), "{page}: {}", &script[..40]);
        }
    }
    let page = visitor.get("/").await.body;
    for asset in page.split("\"/assets/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let answer = ask(house.http, &format!("GET /assets/{asset}"), &[], "").await;
        assert_eq!(answer.status, 200, "{asset}");
        assert_eq!(answer.field("cache-control"), Some("public, max-age=31536000, immutable"));
    }
    assert_eq!(ask(house.http, "GET /assets/0000000000000000.js", &[], "").await.status, 404);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_something_wants_the_token_of_the_session_and_our_own_site() {
    let house = House::new().await;
    let (visitor, other) = (house.log_in().await, house.log_in().await);
    assert_ne!(visitor.csrf, other.csrf);
    let suspended = || async { !house.server.app.operator().readiness().await.unwrap().suspended.is_empty() };
    let fields = [("kind", "all")];
    for token in ["", "x", other.csrf.as_str(), TOKEN] {
        let forged = Visitor { csrf: token.to_owned(), ..visitor.clone() };
        for path in ["/suspend", "/queue/cancel", "/suppressions/add", "/captured/delete", "/logout"] {
            assert_eq!(forged.post(path, &fields).await.status, 403, "{path} with {token:?}");
        }
    }
    let good = form([&("csrf", visitor.csrf.as_str()), &("kind", "all")]);
    for field in
        ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
    {
        assert_eq!(visitor.send("/suspend", &[field], &good).await.status, 403, "{field}");
        assert_eq!(
            ask(house.http, "POST /login", &[FORM, field], &format!("token={TOKEN}")).await.status,
            403,
            "{field}"
        );
    }
    assert!(!suspended().await);
    let ours = format!("Origin: http://{}", house.http);
    assert_eq!(visitor.send("/suspend", &[&ours, "Sec-Fetch-Site: same-origin"], &good).await.status, 303);
    assert!(suspended().await);
    // By GET nothing changes.
    for path in ["/suspend", "/resume", "/queue/cancel", "/logout", "/suppressions/remove"] {
        assert_eq!(visitor.get(path).await.status, 405, "{path}");
    }
    assert!(suspended().await);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_story_is_told_with_why_it_waits_and_nothing_of_it_is_more_than_text() {
    let house = House::new().await;
    let evil = "<script>alert(\"subject\")</script>\u{202e}'&amp;";
    let waiting = house.send("later@far.test", evil).await;
    let failed = house.send("never@far.test", "failed").await;
    house.server.wait_for(waiting, |event| matches!(event, Event::Deferred { .. })).await;
    house.server.wait_for(failed, |event| matches!(event, Event::Failed { .. })).await;
    let visitor = house.log_in().await;
    let story = visitor.get(&format!("/messages/{waiting}")).await;
    assert_eq!(story.status, 200);
    for wanted in [
        "&lt;script&gt;alert(&quot;subject&quot;)",
        "later@far.test",
        "Next try",
        "deferred",
        "accepted",
        "queue/retry",
    ] {
        assert!(story.body.contains(wanted), "{wanted}: {}", story.body);
    }
    let explanation = house.server.app.operator().explain(waiting).await.unwrap().unwrap();
    let why = explanation.recipients[0].why.replace('<', "&lt;").replace('>', "&gt;");
    assert!(story.body.contains(&why), "{why}: {}", story.body);
    let done = visitor.get(&format!("/messages/{failed}")).await.body;
    assert!(done.contains("&lt;img src=x onerror=alert('never')&gt;"), "{done}");
    for page in PAGES.iter().map(|page| (*page).to_owned()).chain([
        format!("/messages/{waiting}"),
        format!("/messages/{failed}"),
        format!("/queue?to={}", "%3Cscript%3E%22"),
        format!("/log?q={}", "%3Cscript%3E%22%40x"),
        format!("/suppressions?address={}", "%3Cscript%3E%22%40x.test"),
        format!("/captured?q={}", "%3Cscript%3E%22"),
    ]) {
        let body = visitor.get(&page).await.body;
        for bad in ["<script>", "<img", "\u{202e}", "value=\"<", LATER, NEVER] {
            assert!(!body.contains(bad), "{page} has {bad}");
        }
    }
    assert_eq!(visitor.get("/messages/0000000000000").await.status, 404);
    assert_eq!(visitor.get("/messages/%3Cscript%3E").await.status, 404);
    // The same from the log, and by its id straight to the story.
    let log = visitor.get("/log?q=later%40far.test").await.body;
    assert!(log.contains(&format!("/messages/{waiting}")) && !log.contains(&format!("/messages/{failed}")), "{log}");
    let by_id = visitor.get(&format!("/log?q={waiting}")).await;
    assert_eq!(by_id.field("location"), Some(format!("/messages/{waiting}").as_str()));
    assert!(visitor.get("/").await.body.contains("&lt;img src=x"), "the overview names what went wrong");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_filtered_paged_and_changed() {
    let house = House::new().await;
    house.server.app.operator().suspend(postrider::queue::suspend::Suspension::All, true).await.unwrap();
    let mut ids = Vec::new();
    for number in 0..52 {
        let to = if number % 2 == 0 { "even@far.test" } else { "odd@wide.test" };
        ids.push(house.send(to, &format!("number {number}")).await);
    }
    let visitor = house.log_in().await;
    let count = |body: &str| body.matches("name=\"id\"").count();
    let first = visitor.get("/queue").await.body;
    assert_eq!(count(&first), 50);
    let next = first.split("rel=\"next\"").next().unwrap().rsplit("href=\"").next().unwrap().split('"').next().unwrap();
    assert_eq!(next, format!("/queue?after={}", ids[49]));
    assert_eq!(count(&visitor.get(next).await.body), 2);
    for (query, wanted) in [
        ("to=even@far.test", 26),
        ("domain=wide.test", 26),
        ("from=shop@home.test", 50),
        ("from=nobody@home.test", 0),
        ("stream=bulk", 0),
        ("stream=transactional", 50),
        ("status=held", 0),
        ("older=4h", 0),
        ("to=&from=&domain=&stream=&status=&older=", 50),
    ] {
        assert_eq!(count(&visitor.get(&format!("/queue?{query}")).await.body), wanted, "{query}");
    }
    for bad in ["status=lost", "older=4", "after=x"] {
        assert_eq!(visitor.get(&format!("/queue?{bad}")).await.status, 400, "{bad}");
    }

    let (one, two, three) = (ids[0].to_string(), ids[1].to_string(), ids[2].to_string());
    let held = || async {
        let filter = Filter { status: Some(Status::Held), ..Filter::default() };
        house.server.app.operator().list(filter, Page::default()).await.unwrap().len()
    };
    let answer = visitor.post("/queue/hold", &[("id", &one), ("id", &two), ("back", "/queue?domain=far.test")]).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/queue?domain=far.test")));
    assert_eq!(held().await, 2);
    assert!(visitor.get("/queue").await.body.contains("2 recipients are held."));
    assert!(!visitor.get("/queue").await.body.contains("2 recipients are held."), "once");
    visitor.post("/queue/release", &[("id", &one)]).await;
    assert_eq!(held().await, 1);
    visitor.post("/queue/cancel", &[("id", &one), ("id", &three), ("back", "https://evil.example/")]).await;
    assert_eq!(house.server.queue().await.len(), 50);
    for (fields, wanted) in [(vec![], 303), (vec![("id", "x")], 400)] {
        assert_eq!(visitor.post("/queue/cancel", &fields).await.status, wanted);
    }
    assert_eq!(visitor.post("/queue/explode", &[("id", &two)]).await.status, 404);
    assert_eq!(house.server.queue().await.len(), 50);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_suspended_is_resumed_and_a_retry_goes_out() {
    let house = House::new().await;
    let id = house.send("later@far.test", "x").await;
    house.server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    let visitor = house.log_in().await;
    for (kind, name) in [("stream", "bulk"), ("all", "")] {
        let answer = visitor.post("/suspend", &[("kind", kind), ("name", name), ("back", "/destinations")]).await;
        assert_eq!(answer.field("location"), Some("/destinations"));
    }
    let page = visitor.get("/destinations").await.body;
    assert_eq!(page.matches("suspended</span>").count(), 2, "{page}");
    assert!(visitor.get("/").await.body.contains("all sending"));
    house.far.later_has_come();
    assert_eq!(visitor.post("/queue/retry", &[("id", &id.to_string())]).await.status, 303);
    visitor.post("/resume", &[("kind", "all")]).await;
    house.server.wait_done(id).await;
    visitor.post("/resume", &[("kind", "stream"), ("name", "bulk")]).await;
    // Another window has been faster.
    visitor.post("/resume", &[("kind", "stream"), ("name", "bulk"), ("back", "/destinations")]).await;
    let page = visitor.get("/destinations").await.body;
    assert!(page.contains("Nothing was changed: the stream bulk was not suspended."), "{page}");
    assert!(house.server.app.operator().readiness().await.unwrap().suspended.is_empty());
    for fields in [vec![], vec![("kind", "target"), ("name", "box")], vec![("kind", "stream")]] {
        assert_eq!(visitor.post("/suspend", &fields).await.status, 400, "{fields:?}");
    }
    let answer = visitor.post("/suspend", &[("kind", "stream"), ("name", "none")]).await;
    assert_eq!(answer.status, 303);
    assert!(visitor.get("/").await.body.contains("there is no stream named"));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_has_complained_is_shown_with_its_complaint() {
    let house = House::with("[destinations.default]\nconnections = 1").await;
    let visitor = house.log_in().await;
    assert!(visitor.get("/destinations").await.body.contains("no server has complained"));
    let id = house.send("busy@far.test", "x").await;
    house.server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    // The dispatcher hears of it when the attempt gives its place back, which is before the story is told.
    let page = visitor.get("/destinations").await.body;
    for wanted in ["mx.far.test", "left alone", "mail exchangers", "slow down &lt;b&gt;please", "1 at once"] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suppressions_are_added_looked_up_and_removed() {
    let house = House::new().await;
    let visitor = house.log_in().await;
    let add = |address: &'static str, scope: &'static str, lasts: &'static str| {
        let visitor = visitor.clone();
        async move {
            let fields = [("address", address), ("scope", scope), ("for", lasts), ("back", "/suppressions")];
            visitor.post("/suppressions/add", &fields).await.status
        }
    };
    assert_eq!(add("bob@far.test", "global", "").await, 303);
    assert_eq!(add("@gone.test", "bulk", "30d").await, 303);
    for (address, lasts) in [("", ""), ("bob", ""), ("bob@far.test", "long")] {
        assert_eq!(add(address, "global", lasts).await, 400, "{address} {lasts}");
    }
    let page = visitor.get("/suppressions").await.body;
    for wanted in ["bob@far.test", "@gone.test", "everywhere", "stream <bdi>bulk</bdi>", "for good", "in 29 days"] {
        assert!(page.contains(wanted), "{wanted}: {page}");
    }
    let known = visitor.get("/suppressions?address=bob%40far.test").await.body;
    assert!(known.contains("Remove") && known.contains("manual"), "{known}");
    assert!(visitor.get("/suppressions?address=eve%40far.test").await.body.contains("not listed"));
    let fields = [("address", "bob@far.test"), ("scope", "global"), ("force", "1")];
    assert_eq!(visitor.post("/suppressions/remove", &fields).await.status, 303);
    assert_eq!(house.server.app.operator().suppressions(None, 10).await.unwrap().len(), 1);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_mail_is_read_in_a_frame_that_can_do_nothing() {
    let house = House::with("default = \"capture\"").await;
    let content = "From: Shop <shop@home.test>\r\nTo: You <you@far.test>\r\nSubject: An order\r\nMIME-Version: 1.0\r\n\
                   Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n\
                   <p>Your order</p><script>document.title = 'taken'</script>\r\n--b\r\n\
                   Content-Type: text/html; name=\"<b>.html\"\r\nContent-Disposition: attachment\r\n\r\n<script>x\r\n--b--\r\n";
    let id = house.send_content("you@far.test", content).await;
    house.server.wait_for(id, |event| matches!(event, Event::Captured { .. })).await;
    let visitor = house.log_in().await;
    let list = visitor.get("/captured").await.body;
    assert!(list.contains("An order") && list.contains("you@far.test"), "{list}");
    assert!(visitor.get("/captured?q=nothing").await.body.contains("Nothing"));

    let page = visitor.get(&format!("/captured/{id}")).await.body;
    assert!(page.contains(&format!("<iframe sandbox src=\"/captured/{id}/html\"")), "{page}");
    assert!(!page.contains("<p>Your order"), "{page}");
    let frame = visitor.get(&format!("/captured/{id}/html")).await;
    let policy = frame.field("content-security-policy").unwrap();
    assert!(policy.starts_with("sandbox; default-src 'none'") && policy.contains("frame-ancestors 'self'"), "{policy}");
    assert!(frame.body.contains("<p>Your order</p>"));
    for (view, wanted) in
        [("headers", "Shop &lt;shop@home.test&gt;"), ("source", "&lt;p&gt;Your order"), ("text", "pre")]
    {
        let body = visitor.get(&format!("/captured/{id}?view={view}")).await.body;
        assert!(body.contains(wanted) && !body.contains("<script>"), "{view}: {body}");
    }
    for path in ["source", "attachments/1"] {
        let file = visitor.get(&format!("/captured/{id}/{path}")).await;
        assert_eq!(file.status, 200, "{path}");
        assert!(file.field("content-disposition").unwrap().starts_with("attachment; "), "{path}");
        assert_eq!(file.field("content-security-policy"), Some("sandbox; default-src 'none'"), "{path}");
    }
    for path in
        [format!("/captured/{id}/attachments/9"), "/captured/0000000000000".to_owned(), format!("/captured/{id}/x")]
    {
        assert!([404, 401].contains(&visitor.get(&path).await.status), "{path}");
    }
    for path in ["", "/html", "/source", "/attachments/1"] {
        assert_eq!(ask(house.http, &format!("GET /captured/{id}{path}"), &[], "").await.status, 303, "{path}");
    }

    assert_eq!(visitor.post(&format!("/captured/{id}/release"), &[("to", "you")]).await.status, 303);
    assert!(visitor.get("/captured").await.body.contains("That is not an address"));
    assert_eq!(visitor.post(&format!("/captured/{id}/release"), &[]).await.status, 303);
    house.server.wait_for(id, |event| matches!(event, Event::Delivered { .. })).await;
    let other = house.send("you@far.test", "another").await;
    house.server.wait_for(other, |event| matches!(event, Event::Captured { .. })).await;
    assert_eq!(visitor.post(&format!("/captured/{other}/delete"), &[]).await.status, 303);
    assert!(visitor.get("/captured").await.body.contains("Nothing is captured."));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_are_drawn_of_what_was_counted() {
    let house = House::new().await;
    let id = house.send("you@far.test", "x").await;
    house.server.wait_done(id).await;
    let visitor = house.log_in().await;
    // The first look is at the start, the second ten seconds later: until then there are no numbers, and the page
    // says so.
    let page = visitor.get("/").await.body;
    assert_eq!(page.matches("<svg role=\"img\"").count(), 4);
    for title in ["Mail a minute", "Messages in the queue", "Trouble a minute", "From taken to delivered"] {
        assert!(page.contains(&format!("-title\">{title}</title>")), "{title}");
    }
    assert!(page.contains("all is well") && page.contains("127.0.0.1:"), "{page}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rare_filter_looks_at_a_part_of_the_queue_and_says_so() {
    let house = House::new().await;
    house.server.app.operator().suspend(postrider::queue::suspend::Suspension::All, true).await.unwrap();
    for number in 0..5 {
        house.send("you@far.test", &format!("{number}")).await;
    }
    let last = house.send("rare@far.test", "rare").await;
    let operator = house.server.app.operator();
    let filter = Filter { to: Some("rare@far.test".to_owned()), ..Filter::default() };
    let page = |after| Page { limit: 10, after };
    let part = operator.look(filter.clone(), page(None), 4).await.unwrap();
    assert_eq!((part.messages.len(), part.looked_at), (0, 4));
    let part = operator.look(filter.clone(), page(part.next), 4).await.unwrap();
    assert_eq!((part.messages.len(), part.looked_at, part.next), (1, 2, None));
    assert_eq!(part.messages[0].id, last);
    let part = operator.look(filter, Page { limit: 1, after: None }, 100).await.unwrap();
    assert_eq!((part.messages.len(), part.next), (1, Some(last)));

    // All of them are counted, without looking at them.
    let counted = async {
        while operator.queued() != Some(6) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), counted).await.unwrap();
    house.server.stop().await;
}
