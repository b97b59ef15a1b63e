"""How meca's servers are run: on one machine (`infra.local`), in containers, on Kubernetes."""
