# What CI runs, by hand.

default:
    @just --list

# Format, lints, tests, conformance: all that must hold before a change lands.
ci:
    .ci/run

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

test:
    cargo test --workspace --locked

# The whole platform with the sample service.
up *flags:
    cargo run --release -- up --demo {{flags}}

# Neap against other people's tools: kubectl, skopeo, hey.
conformance:
    conformance/run
