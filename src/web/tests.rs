use super::*;

fn head(text: &str) -> Head {
    Head::parse(text.as_bytes()).unwrap().expect("a complete head")
}

fn get(target: &str, host: &str) -> Head {
    head(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
}

/// The status code of the answer to whoever may ask.
fn code(head: &Head, access: &Access, site: Site) -> u16 {
    route(head, access, site).map_or_else(|answer| answer.code(), |_| 200)
}

fn parsed(text: &str) -> u16 {
    match Head::parse(text.as_bytes()) {
        Ok(Some(head)) => code(&head, &Access::Loopback, Site::Agent),
        Ok(None) => 0,
        Err(answer) => answer.code(),
    }
}

#[test]
fn what_is_there_is_found_and_nothing_else() {
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("HEAD /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET /status.json?x=1 HTTP/1.1\r\nHost: 127.0.0.1:8484\r\n\r\n", 200),
        ("GET /metrics HTTP/1.0\r\n\r\n", 200),
        ("GET http://localhost HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET http://localhost/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        ("GET /status.json/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /../metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("get / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        ("\x16\x03\x01\x02\0\x01", 400),
        ("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n", 0),
    ] {
        assert_eq!(parsed(request), expected, "{request:?}");
    }
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(HEAD_LIMIT));
    assert_eq!(parsed(&large), 431);
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(64));
    assert_eq!(parsed(&many), 431);
}

#[test]
fn a_server_has_metrics_alone() {
    let of = |target| code(&get(target, "localhost"), &Access::Loopback, Site::Server);
    assert_eq!(["/metrics", "/", "/status.json"].map(of), [200, 404, 404]);
}

#[test]
fn the_history_is_asked_for_with_its_parameters() {
    let wanted = |target| route(&get(target, "localhost"), &Access::Loopback, Site::Agent).unwrap();
    assert_eq!(wanted("/history.json?span=days&last=5").params, json!({"span": "days", "last": 5}));
    assert_eq!(wanted("/history.json?last=x&other=1").params, json!({"last": "x"}));
    assert_eq!(wanted("/history.json").method, "history");
}

#[test]
fn strangers_names_are_refused_where_there_is_no_token() {
    let of = |host: &str| {
        let head = get("/", host);
        [Access::Loopback, Access::Lan].map(|access| code(&head, &access, Site::Agent))
    };
    for host in
        ["localhost", "LOCALHOST:8484", "127.0.0.1", "127.0.0.1:8484", "[::1]", "[::1]:8484"]
    {
        assert_eq!(of(host), [200, 200], "{host}");
    }
    for host in ["192.168.1.1", "192.168.1.1:8484", "[fd00::1]:8484", "OpenWrt", "router.lan:8484"]
    {
        assert_eq!(of(host), [421, 200], "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "lan.evil.example",
        "evillan.example:8484",
        "localhost:evil",
        "localhost:",
        "[::1]evil.example",
        "evil.example:8484.lan",
        "",
    ] {
        assert_eq!(of(host), [421, 421], "{host}");
    }
    let absolute = head("GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(code(&absolute, &Access::Loopback, Site::Agent), 421);
}

#[test]
fn a_token_opens_once_by_the_address_and_then_by_a_cookie_or_a_header() {
    let access = Access::Token(Token::from_text("0123456789abcdef\n").unwrap());
    let of = |target: &str, field: &str| {
        let head = head(&format!("GET {target} HTTP/1.1\r\nHost: any.example\r\n{field}\r\n"));
        code(&head, &access, Site::Agent)
    };
    assert_eq!(of("/", ""), 401);
    assert_eq!(of("/?token=0123456789abcdef", ""), 303);
    assert_eq!(of("/?token=0123456789abcdee", ""), 401);
    assert_eq!(of("/?token=", ""), 401);
    assert_eq!(of("/status.json", "Cookie: a=b; mptcp-bond=0123456789abcdef\r\n"), 200);
    assert_eq!(of("/status.json", "Cookie: xmptcp-bond=0123456789abcdef\r\n"), 401);
    assert_eq!(of("/metrics", "Authorization: Bearer 0123456789abcdef\r\n"), 200);
    assert_eq!(of("/metrics", "Authorization: Bearer 0123456789ABCDEF\r\n"), 401);
    assert_eq!(of("/metrics", "Authorization: Basic 0123456789abcdef\r\n"), 401);
    assert_eq!(of("/nowhere", ""), 401, "strangers are told nothing");

    let answer = route(&get("/?token=0123456789abcdef", "a"), &access, Site::Agent).unwrap_err();
    let text = String::from_utf8(answer.bytes(true)).unwrap();
    assert!(text.contains("\r\nLocation: /\r\n"), "{text}");
    let cookie = "\r\nSet-Cookie: mptcp-bond=0123456789abcdef; HttpOnly; SameSite=Strict; Path=/";
    assert!(text.contains(cookie), "{text}");
    assert!(Token::from_text("0123456789abcde").is_err(), "too short");
    assert!(Token::from_text("0123456789abcdef\r\nSet-Cookie: a").is_err());
}

#[test]
fn an_answer_has_its_fields() {
    let answer = Answer::of(Content::Json, "{}".to_owned());
    let text = String::from_utf8(answer.bytes(true)).unwrap();
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n\
         Connection: close\r\nContent-Security-Policy: default-src 'none'; \
         frame-ancestors 'none'\r\n\r\n{}"
    );
    assert_eq!(String::from_utf8(answer.bytes(false)).unwrap() + "{}", text);
    let page = String::from_utf8(Answer::of(Content::Page, String::new()).bytes(true)).unwrap();
    assert!(!page.contains("unsafe-inline") && page.contains("script-src 'sha256-"), "{page}");
}

/// 100,000 mutated heads: no panic, and what is accepted obeys the rules.
#[test]
fn mutated_heads_are_parsed_or_refused() {
    let seeds = [
        &b"GET /status.json HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"[..],
        b"GET http://[::1]:8484/history.json?a=b HTTP/1.1\r\nHost: x\r\nCookie: a=b;c\r\n\r\n",
        b"HEAD / HTTP/1.0\r\nAuthorization: Bearer x\r\n\r\n",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut accepted, mut refused, mut incomplete) = (0, 0, 0);
    for _ in 0..100_000 {
        let mut head = seeds[random(seeds.len())].to_vec();
        for _ in 0..random(4) {
            let at = random(head.len());
            match random(5) {
                0 => head[at] = random(256) as u8,
                1 => head.truncate(at.max(1)),
                2 => head.insert(at, random(256) as u8),
                3 => drop(head.remove(at)),
                _ => head.extend_from_within(at..),
            }
            if head.is_empty() {
                break;
            }
        }
        match Head::parse(&head) {
            Ok(Some(head)) => {
                accepted += 1;
                if route(&head, &Access::Loopback, Site::Agent).is_ok() {
                    assert!(head.host.as_deref().is_none_or(is_loopback), "{head:?}");
                }
            }
            Ok(None) => incomplete += 1,
            Err(answer) => {
                refused += 1;
                assert!(matches!(answer.code(), 400 | 431 | 505));
            }
        }
    }
    assert!(accepted > 1000 && refused > 1000 && incomplete > 1000);
}
