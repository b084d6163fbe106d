"""Ollama's API: chat, generate, embed, and what there is to ask about models."""

from __future__ import annotations

from blip.gateway.routes.ollama import chat, embed, generate, models

OPERATIONS = (
    *chat.OPERATIONS,
    *generate.OPERATIONS,
    *embed.OPERATIONS,
    *models.OPERATIONS,
)

__all__ = ["OPERATIONS"]
