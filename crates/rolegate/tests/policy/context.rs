//! Tests of the kubeconfig's context in commands that query a cluster.

use std::net::Ipv4Addr;

use rolegate_devkit::{KubeApi, KubeApiOptions};
use serde_json::json;

use crate::{BASE, Ran, json, run};

async fn ran(files: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let files: Vec<(String, String)> = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    let arguments: Vec<String> = arguments.iter().map(|one| (*one).to_owned()).collect();
    let run = move || {
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (&**name, &**text))
            .collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        run(&files, &arguments, "")
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test]
async fn the_default_namespace_is_that_of_the_context() {
    let bind = (Ipv4Addr::LOCALHOST, 0).into();
    let api = KubeApi::start(bind, KubeApiOptions::default())
        .await
        .unwrap();
    let annotations = json!({"iam.amazonaws.com/allowed-roles": "[\"reader\"]"});
    api.put_namespace(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "annotations": annotations}}));
    api.put_namespace(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "default"}}));
    let role = json!({"iam.amazonaws.com/role": "reader"});
    api.put_pod(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "api", "namespace": "shop", "annotations": role},
        "spec": {"nodeName": "a", "containers": []}, "status": {"phase": "Running"}}));
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: shop\n\
         clusters: [{{name: one, cluster: {{server: '{}'}}}}]\nusers: [{{name: me, user: {{}}}}]\n\
         contexts:\n- {{name: shop, context: {{cluster: one, user: me, namespace: shop}}}}\n\
         - {{name: none, context: {{cluster: one, user: me}}}}\n",
        api.url()
    );
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, annotations: \
               {iam.amazonaws.com/role: reader}}\nspec: {containers: []}\n";
    let files = [("config", &*kubeconfig), ("pod.yaml", pod)];
    let flags = [BASE, "--kubeconfig=config", "--namespace-restrictions=true"];
    let explain = [&["explain", "pod/api", "-o", "json"][..], &flags].concat();
    let explained = ran(&files, &explain).await;
    assert_eq!(explained.code, 0, "{}{}", explained.out, explained.err);
    assert_eq!(json(&explained)["workload"]["namespace"], "shop");
    let check = [&["check", "-f", "pod.yaml"][..], &flags].concat();
    let checked = ran(&files, &check).await;
    assert_eq!(checked.code, 0, "{}{}", checked.out, checked.err);
    // Another context, or a flag, selects another namespace.
    for more in ["--context=none", "--namespace=default"] {
        let explained = ran(&files, &[&explain[..], &[more]].concat()).await;
        assert_eq!(explained.code, 1, "{}{}", explained.out, explained.err);
        let checked = ran(&files, &[&check[..], &[more]].concat()).await;
        assert_eq!(checked.code, 3, "{}{}", checked.out, checked.err);
    }
}
