//! temporary
fn main() {
    neap_runtime::spawner::main_if_requested();
    let a: Vec<String> = std::env::args().collect();
    let d = std::path::PathBuf::from(format!("/tmp/slice{}",std::process::id()));  std::fs::create_dir_all(&d).unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(neap_runtime::slice::run(d, a[1].clone().into(), a[2].parse().unwrap(), a[3].parse().unwrap()));
}
