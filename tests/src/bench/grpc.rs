//! The comparison that many hosts chose: a unary gRPC call over a Unix socket, two processes, tonic on both sides. The service
//! is written by hand, because its generator needs a program that is not a crate.

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// Bytes there and back.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// The bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "bench.Echo";
}

impl UnaryService<Payload> for Echo {
    type Response = Payload;
    type Future = std::future::Ready<Result<Response<Payload>, Status>>;
    fn call(&mut self, request: Request<Payload>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Payload, Payload>::default());
            Ok(grpc.unary(Echo, request).await)
        })
    }
}

/// Accepted connections, one after the other.
struct Incoming(UnixListener);

impl tokio_stream::Stream for Incoming {
    type Item = std::io::Result<UnixStream>;
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    }
}

/// The server process.
pub fn serve(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = UnixListener::bind(path).expect("a socket");
        let _ = Server::builder().add_service(Echo).serve_with_incoming(Incoming(listener)).await;
    });
}

/// The calling side, with its server process.
pub struct Client {
    child: Child,
    channel: Channel,
}

impl Client {
    /// Starts the server and connects.
    pub async fn start(path: &Path) -> Self {
        let exe = std::env::current_exe().expect("a path");
        let child = Command::new(exe).arg("--grpc-echo").arg(path).spawn().expect("the server starts");
        let begun = Instant::now();
        loop {
            let path = path.to_path_buf();
            let connect = tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
            });
            match Endpoint::from_static("http://[::]:1").connect_with_connector(connect).await {
                Ok(channel) => return Self { child, channel },
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(10), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Sorted nanoseconds of so many calls.
    pub async fn calls(&mut self, data: &[u8], count: usize) -> Vec<u64> {
        let mut times = Vec::with_capacity(count);
        let mut grpc = Grpc::new(self.channel.clone());
        for _ in 0..count {
            let begun = Instant::now();
            grpc.ready().await.expect("ready");
            let path = http::uri::PathAndQuery::from_static("/bench.Echo/Call");
            let request = Request::new(Payload { data: data.to_vec() });
            let codec = ProstCodec::<Payload, Payload>::default();
            let answer = grpc.unary(request, path, codec).await.expect("answers");
            std::hint::black_box(answer.into_inner());
            times.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        times.sort_unstable();
        times
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
