"""The studies behind the figures, predicted and trained."""
