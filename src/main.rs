//! The binary: one TLS provider for the whole process, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Fails only if a provider is there already; then that one serves.
    let _ = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default();
    postrider::cli::run(std::env::args_os())
}
