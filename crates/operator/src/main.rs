//! The binary `mds-operator`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mds_operator::{manifests, run};

/// Runs MyDataStore clusters on Kubernetes.
#[derive(Parser)]
#[command(name = "mds-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch resources and act, as long as this one holds the lease
    Run(run::RunArgs),
    /// Print the custom resource definition as YAML
    Crd,
    /// Write the manifests: kustomize and Helm, from one source
    Manifests {
        /// Directory that gets `kubernetes/` and `helm/`
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(args) => run::main(&args),
        Command::Crd => {
            print!("{}", manifests::crd());
            Ok(())
        }
        Command::Manifests { directory } => manifests::write(&directory),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
