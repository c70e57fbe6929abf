package kubernetes.admission

# Images come from our own registry.
deny contains msg if {
	some container in input.request.object.spec.containers
	not startswith(container.image, "registry.example/")
	msg := sprintf("image %s is not from registry.example", [container.image])
}
