//! The binary `mydatastore`. See [`mydatastore::cli`].

fn main() -> std::process::ExitCode {
    mydatastore::cli::main()
}
