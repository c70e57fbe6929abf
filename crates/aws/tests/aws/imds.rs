//! Our own queries to the metadata service, and those forwarded for pods.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rolegate_aws::imds::{Imds, ImdsError};
use rolegate_devkit as devkit;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::ANY;
use super::raw::{Raw, answer, read_head};

const REGION: &str = "/latest/meta-data/placement/region";

async fn service(v2_only: bool) -> (devkit::Imds, Imds) {
    let options = devkit::ImdsOptions {
        v2_only,
        ..devkit::ImdsOptions::default()
    };
    let service = devkit::Imds::start(ANY, options).await.unwrap();
    let imds = Imds::new(&service.url()).unwrap();
    (service, imds)
}

fn count(service: &devkit::Imds, method: &Method) -> usize {
    service
        .requests()
        .iter()
        .filter(|request| request.method == *method)
        .count()
}

#[tokio::test]
async fn one_token_serves_all_requests() {
    let (service, imds) = service(true).await;
    service.set_latency(Duration::from_millis(20));
    let asked: Vec<_> = (0..20)
        .map(|_| {
            tokio::spawn({
                let imds = imds.clone();
                async move { imds.get_text(REGION).await }
            })
        })
        .collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().unwrap(), "eu-west-1");
    }
    assert_eq!(imds.get_text(REGION).await.unwrap(), "eu-west-1");
    assert_eq!(count(&service, &Method::PUT), 1);
    let put = &service.requests()[0];
    assert_eq!(put.path, "/latest/api/token");
    assert_eq!(put.headers["x-aws-ec2-metadata-token-ttl-seconds"], "21600");
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let (service, imds) = service(true).await;
    imds.get_text(REGION).await.unwrap();
    service.revoke_tokens();
    assert_eq!(imds.get_text(REGION).await.unwrap(), "eu-west-1");
    assert_eq!(count(&service, &Method::PUT), 2);
    assert_eq!(count(&service, &Method::GET), 3);

    let never = Raw::start(|head| {
        if head.starts_with("put") {
            answer(200, "", "token")
        } else {
            answer(401, "", "")
        }
    })
    .await;
    let imds = Imds::new(&never.addr.to_string()).unwrap();
    assert_eq!(imds.get_text(REGION).await, Err(ImdsError::TokenRefused));
    assert_eq!(never.heads().len(), 4);
    assert_eq!(
        imds.forward(&Method::GET, REGION).await.err(),
        Some(ImdsError::TokenRefused)
    );
}

#[tokio::test]
async fn version_1_where_there_are_no_tokens() {
    for status in [403, 404, 405] {
        let service = Raw::start(move |head| {
            if head.starts_with("put") {
                answer(status, "", "")
            } else {
                answer(200, "", "eu-west-1")
            }
        })
        .await;
        let imds = Imds::new(&service.addr.to_string()).unwrap();
        for _ in 0..2 {
            assert_eq!(imds.get_text(REGION).await.unwrap(), "eu-west-1");
        }
        let heads = service.heads();
        assert_eq!(heads.len(), 3, "{status}: {heads:?}");
        assert!(!heads[1].contains("x-aws-ec2-metadata-token"), "{heads:?}");
    }
}

#[tokio::test]
async fn tokens_are_taken_up_when_version_1_ends() {
    let required = std::sync::atomic::AtomicBool::new(false);
    let service = Raw::start(move |head| {
        use std::sync::atomic::Ordering::Relaxed;
        if head.starts_with("put") {
            // Tokens exist from the second request on.
            return answer(
                if required.swap(true, Relaxed) {
                    200
                } else {
                    404
                },
                "",
                "token",
            );
        }
        if head.contains("/before") || head.contains("token: token") {
            return answer(200, "", "fine");
        }
        answer(401, "", "")
    })
    .await;
    let imds = Imds::new(&service.addr.to_string()).unwrap();
    assert_eq!(imds.get_text("/before").await.unwrap(), "fine");
    assert_eq!(imds.get_text("/after").await.unwrap(), "fine");
}

#[tokio::test]
async fn a_broken_token_service_is_an_error() {
    for status in [400, 500, 503] {
        let service = Raw::start(move |_| answer(status, "", "")).await;
        let imds = Imds::new(&service.addr.to_string()).unwrap();
        let expected = ImdsError::Status(StatusCode::from_u16(status).unwrap());
        assert_eq!(imds.get_text(REGION).await, Err(expected));
        assert_eq!(service.heads().len(), 1);
    }
    let service = Raw::start(|_| answer(200, "", "not\na token")).await;
    let imds = Imds::new(&service.addr.to_string()).unwrap();
    assert_eq!(
        imds.get_text(REGION).await,
        Err(ImdsError::Malformed("a token"))
    );
}

#[tokio::test]
async fn texts_are_bounded_and_text() {
    const LIMIT: usize = 64 * 1024;
    let short = || Err(ImdsError::Malformed("a short text"));
    for (token, text, expected) in [
        (10, LIMIT, Ok(LIMIT)),
        (10, LIMIT + 1, short()),
        (LIMIT, 10, short()),
    ] {
        let service = Raw::start(move |head| {
            if head.starts_with("put") {
                answer(200, "", &"x".repeat(token))
            } else {
                answer(200, "", &"x".repeat(text))
            }
        })
        .await;
        let imds = Imds::new(&service.addr.to_string()).unwrap();
        assert_eq!(imds.get_text(REGION).await.map(|text| text.len()), expected);
    }
    let (_service, imds) = service(false).await;
    let missing = imds.get_text("/latest/meta-data/nothing").await;
    assert_eq!(missing, Err(ImdsError::Status(StatusCode::NOT_FOUND)));
}

#[tokio::test]
async fn unreachable_and_silent_services_differ() {
    let port = TcpListener::bind(ANY).await.unwrap().local_addr().unwrap();
    let imds = Imds::new(&port.to_string()).unwrap();
    assert!(matches!(
        imds.get_text(REGION).await,
        Err(ImdsError::Unreachable(_))
    ));

    let silent = Raw::start(|_| String::new()).await;
    let imds = Imds::new(&silent.addr.to_string()).unwrap();
    // Requests that wait for the same token share its error, and do not queue up for their own.
    let (one, other) = tokio::join!(imds.get_text(REGION), imds.get_text(REGION));
    assert_eq!(
        (one, other),
        (Err(ImdsError::TimedOut), Err(ImdsError::TimedOut))
    );
    assert_eq!(silent.heads().len(), 1);
}

#[tokio::test]
async fn answers_are_handed_on_as_they_are() {
    let (_service, imds) = service(true).await;
    let found = imds.forward(&Method::GET, REGION).await.unwrap();
    assert_eq!(found.status(), StatusCode::OK);
    assert_eq!(found.headers()[CONTENT_TYPE], "text/plain");
    assert_eq!(found.headers()["server"], "EC2ws");
    assert_eq!(
        found.into_body().collect().await.unwrap().to_bytes(),
        "eu-west-1"
    );

    let head = imds.forward(&Method::HEAD, REGION).await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], "9");
    assert!(
        head.into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .is_empty()
    );

    let missing = imds
        .forward(&Method::GET, "/latest/meta-data/nothing")
        .await
        .unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);

    let put = imds.forward(&Method::PUT, "/latest/api/token").await;
    assert_eq!(put.err(), Some(ImdsError::BadRequest));
}

#[tokio::test]
async fn the_request_holds_nothing_but_what_the_service_needs() {
    let (service, imds) = service(true).await;
    imds.forward(&Method::GET, REGION).await.unwrap();
    let request = service.requests().pop().unwrap();
    assert_eq!(request.path, REGION);
    let mut names: Vec<_> = request.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "x-aws-ec2-metadata-token"]);
    assert_eq!(request.headers["host"], service.addr().to_string());
}

#[tokio::test]
async fn hop_by_hop_headers_are_not_forwarded() {
    let service = Raw::start(|head| {
        if head.starts_with("put") {
            answer(200, "", "our-token")
        } else {
            answer(
                200,
                "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nTE: trailers\r\n\
             Trailer: X-Later\r\nUpgrade: h2c\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
             X-aws-ec2-metadata-token: our-token\r\n\
             X-aws-ec2-metadata-token-ttl-seconds: 300\r\nETag: \"1\"\r\n\
             Content-Type: text/plain\r\n",
                "body",
            )
        }
    })
    .await;
    let imds = Imds::new(&service.addr.to_string()).unwrap();
    let answer = imds.forward(&Method::GET, REGION).await.unwrap();
    let mut names: Vec<_> = answer.headers().keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "content-type", "etag"]);
}

#[tokio::test]
async fn bodies_stream_through() {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let imds = Imds::new(&listener.local_addr().unwrap().to_string()).unwrap();
    let (go_on, told) = tokio::sync::oneshot::channel();
    let service = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await.unwrap();
        stream
            .write_all(answer(404, "", "").as_bytes())
            .await
            .unwrap();
        read_head(&mut stream).await.unwrap();
        let first = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        stream.write_all(first.as_bytes()).await.unwrap();
        // The rest is sent only after the first part has arrived.
        told.await.unwrap();
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
        stream
    });
    let answer = imds.forward(&Method::GET, REGION).await.unwrap();
    assert!(!answer.headers().contains_key("transfer-encoding"));
    let mut body = answer.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "first");
    go_on.send(()).unwrap();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "second");
    drop(service.await.unwrap());
}

#[tokio::test]
async fn a_body_that_stalls_is_an_error() {
    let service = Raw::start(|head| {
        if head.starts_with("put") {
            answer(404, "", "")
        } else {
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhalf".into()
        }
    })
    .await;
    let imds = Imds::new(&service.addr.to_string()).unwrap();
    let mut body = imds
        .forward(&Method::GET, REGION)
        .await
        .unwrap()
        .into_body();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "half"
    );
    // The rest never arrives; paused time reaches the limit at once.
    tokio::time::pause();
    assert_eq!(body.frame().await.unwrap().err(), Some(ImdsError::TimedOut));
}
