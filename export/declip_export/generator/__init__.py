"""Makes generators: a Stable Diffusion, an IP-Adapter and a DeCLIP become the five models of one engine file."""
