package kubernetes.admission_test

import data.kubernetes.admission

pod(image) := {"request": {"object": {"spec": {"containers": [{"image": image}]}}}}

test_our_registry if {
	count(admission.deny) == 0 with input as pod("registry.example/app")
}

test_another_registry if {
	"image nginx is not from registry.example" in admission.deny with input as pod("nginx")
}

todo_test_init_containers if {
	false
}
