"""Stages that fit generators and use them."""
