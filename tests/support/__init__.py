"""What several tests share: tiny bases, random PEFT adapters, references, seeded traffic."""
