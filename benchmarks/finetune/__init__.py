"""Whether a low-rank update suffices: methods and ranks side by side, trained by our workers."""
